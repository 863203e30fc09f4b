"""What a dialect is: one way in which trainers name the tensors of a LoRA file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..suffixes import Slot
from ..types import LayerName, LowRank

Place = Callable[[str, LowRank], Mapping[LayerName, LowRank] | None]
"""The layers that a module's factors belong to; one module may hold several, as fused
query-key-value projections do. None if the dialect has no such module."""


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
        sign: The key that shows that these keys are in this style, the first one that no other
            style has; None if there is none. A file with signs of two styles is refused.
        split: The module and role of a key; None if the dialect has no such key.
        placing: How to place the modules of a file that has all these, as in some styles they tell
            what each of them is.
    """

    name: str
    example: str
    sign: Callable[[Collection[str]], str | None]
    split: Callable[[str], Part | None]
    placing: Callable[[Collection[str]], Place]

    def objection(self, keys: Collection[str]) -> str | None:
        """Why these keys are not in this style; None if they are."""
        return f"no key like {self.example}" if self.sign(keys) is None else None


def first(own: Callable[[str], bool]) -> Callable[[Collection[str]], str | None]:
    """A `sign` that looks at each key by itself, in alphabetical order."""
    return lambda keys: next((key for key in sorted(keys) if own(key)), None)


def alone(place: Place) -> Callable[[Collection[str]], Place]:
    """A `placing` that looks at each module by itself."""
    return lambda modules: place
