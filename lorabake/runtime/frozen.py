"""What models are set to while a gradient goes through them, and exactly back afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_FLAGS = ("gradient_checkpointing", "_gradient_checkpointing_func")


class Frozen:
    """Models whose weights ask for no gradient and whose blocks are computed twice to save memory.

    In diffusers such blocks look at the gradient mode and at their flag, not at `training`.

    Args:
        models: Those that the gradient goes through.
    """

    def __init__(self, models: Iterable[nn.Module]) -> None:
        found = list(dict.fromkeys(models))
        weights = dict.fromkeys(w for model in found for w in model.parameters())
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._flags: list[tuple[nn.Module, dict[str, Any]]] = []
        for weight in self._weights:
            weight.requires_grad_(False)
        for model in found:
            self._checkpoint(model)

    def remove(self) -> None:
        """Give every weight and every flag back what it had."""
        while self._weights:
            self._weights.pop().requires_grad_(True)
        while self._flags:
            module, before = self._flags.pop()
            for flag in _FLAGS:
                vars(module).pop(flag, None)
            vars(module).update(before)

    def _checkpoint(self, model: Any) -> None:  # noqa: ANN401 - a model of diffusers, or any other
        blocks = [module for module in model.modules() if hasattr(module, _FLAGS[0])]
        if not getattr(model, "_supports_gradient_checkpointing", False) or any(
            block.gradient_checkpointing for block in blocks
        ):
            return
        for block in blocks:
            self._flags.append((block, {f: vars(block)[f] for f in _FLAGS if f in vars(block)}))
        if blocks:
            model.enable_gradient_checkpointing()
