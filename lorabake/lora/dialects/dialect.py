"""What a dialect is: one way in which trainers name the tensors of a LoRA file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..kohya import Slot
from ..types import LayerName, LowRank


class Part(NamedTuple):
    """What one tensor is: a module, in the dialect's own words, and its role there."""

    module: str
    slot: Slot


@dataclass(frozen=True, eq=False)
class Dialect:
    """One key style. Each module in `dialects/` has one, as `DIALECT`.

    Attributes:
        name: How messages call it.
        example: A key in this style.
        objection: Why these keys are not in this style; None if they are. For a file of any other
            dialect it must have one.
        split: The module and role of a key; None if the dialect has no such key.
        place: The layers that a module's factors belong to; one module may hold several, as fused
            query-key-value projections do. None if the dialect has no such module.
    """

    name: str
    example: str
    objection: Callable[[Collection[str]], str | None]
    split: Callable[[str], Part | None]
    place: Callable[[str, LowRank], Mapping[LayerName, LowRank] | None]
