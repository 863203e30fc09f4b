"""Keeps anybody from loading base weights over those that a replay has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .errors import AttachError
from .patch import Uncopyable
from .target import Target


class Guard(Uncopyable):
    """Refuses `load_state_dict` on layers and on all that contains them, before it begins.

    Args:
        targets: Layers whose weights are not to be loaded.
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        found = list(targets)
        self._layers = frozenset(target.module for target in found)
        modules = dict.fromkeys(module for target in found for module in target.around())
        self._handles = [m.register_load_state_dict_pre_hook(self._refuse) for m in modules]

    def remove(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    def _refuse(self, root: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
        for name, module in root.named_modules(prefix=prefix.removesuffix(".")):
            key = f"{name}.weight" if name else "weight"
            if module in self._layers and key in state:
                raise AttachError(
                    "base weights cannot be loaded while a bundle is attached to them",
                    where=key,
                    advice="Detach the bundle first",
                )
