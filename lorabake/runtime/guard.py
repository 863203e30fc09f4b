"""Keeps anybody from loading base weights over those that a replay has changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from .errors import AttachError
from .patch import Uncopyable


class Guard(Uncopyable):
    """Refuses `load_state_dict` on a component before anything is loaded.

    Args:
        root: The component.
        layers: Modules in it whose weights are not to be loaded.
    """

    def __init__(self, root: nn.Module, layers: Collection[nn.Module]) -> None:
        self._layers = frozenset(layers)
        self._handle = root.register_load_state_dict_pre_hook(self._refuse)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _refuse(self, root: nn.Module, state: Mapping[str, Any], prefix: str, *_: object) -> None:
        for name, module in root.named_modules(prefix=prefix.removesuffix(".")):
            if module in self._layers and f"{name}.weight" in state:
                raise AttachError(
                    "base weights cannot be loaded while a bundle is attached to them",
                    where=f"{name}.weight",
                    advice="Detach the bundle first",
                )
