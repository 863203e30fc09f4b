"""Kinds of adapters. A new one is a file here and a line in `MEMBERS`."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from ..suffixes import Slot
from . import full, loha, lokr, plain, tucker
from .kind import Kind

__all__ = ["MEMBERS", "PLAIN", "Kind", "choose", "nearest_kind"]

PLAIN = plain.KIND
MEMBERS = (plain.KIND, tucker.KIND, loha.KIND, lokr.KIND, full.KIND)


def choose(slots: AbstractSet[Slot]) -> Kind | None:
    """The kind of a module with these tensors; None if they are of none, or not all are there."""
    return next((kind for kind in MEMBERS if slots - {"alpha"} in kind.layouts), None)


def nearest_kind(slots: AbstractSet[Slot]) -> Kind | None:
    """The first kind that may have all of these tensors; None if they are of several."""
    return next((kind for kind in MEMBERS if slots - {"alpha"} <= kind.slots), None)
