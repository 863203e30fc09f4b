"""Fusion methods: every module in this folder that has a `METHOD` is one."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..errors import RecipeError

if TYPE_CHECKING:
    from .method import Method

__all__ = ["get", "names"]


def names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return tuple(sorted(_methods()))


def get(name: str) -> Method:
    """The method of this name.

    Raises:
        RecipeError: There is none; the message has the nearest name.
    """
    methods = _methods()
    if name not in methods:
        near = get_close_matches(name, methods, 1, 0.5)
        raise RecipeError(
            f"there is no method '{name}'",
            where="method",
            advice=f"Did you mean '{near[0]}'?" if near else f"Choose from {', '.join(names())}",
        )
    return methods[name]


def _methods() -> dict[str, Method]:
    modules = (import_module(f".{found.name}", __name__) for found in iter_modules(__path__))
    members = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.name: method for method in members}
