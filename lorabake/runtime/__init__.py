"""Replay of a bundle: torch, safetensors and the standard library; may be copied into any app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import AttachError, BundleError, OverrideError

if TYPE_CHECKING:
    from .bundle import Bundle, read
    from .replay import Replay

__all__ = ["AttachError", "Bundle", "BundleError", "OverrideError", "Replay", "read"]

_HOMES = {"Bundle": "bundle", "read": "bundle", "Replay": "replay"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type is whatever the name's home holds
    # Late, so that the plan, the manifest and the errors can be had without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
