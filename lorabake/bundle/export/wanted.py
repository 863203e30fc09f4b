"""What an export was asked for, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from ...errors import RecipeError
from .report import Kind
from .styles import To

Only = Literal["content", "style"]

_MAX_PARTS, _MAX_STEPS = 1000, 10_000


@dataclass(frozen=True)
class Wanted:
    """What is to be written; see `export`."""

    to: To
    at: Fraction | float | None
    timeline: int | None
    only: Only | None
    steps: int | None
    rank: int | None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is out of range, or two contradict each other.
        """
        _among("to", self.to, get_args(To))
        given = [name for name in ("at", "timeline", "only", "steps") if _given(self, name)]
        if len(given) > 1:
            raise RecipeError(
                f"{given[0]} and {given[1]} cannot both be given", advice="Leave one of them away"
            )
        if self.only is not None:
            _among("only", self.only, get_args(Only))
        if self.at is not None and not _is_progress(self.at):
            raise RecipeError(
                f"{self.at!r} is out of range", where="at", advice="Give a number from 0 to below 1"
            )
        _whole("timeline", self.timeline, _MAX_PARTS)
        _whole("steps", self.steps, _MAX_STEPS)
        _whole("rank", self.rank)

    @property
    def kind(self) -> Kind:
        """What the result is."""
        if self.only is not None:
            return self.only
        if self.at is not None:
            return "moment"
        return "plan" if self.timeline is None else "timeline"

    @property
    def moment(self) -> Fraction:
        """`at` as it was written: 0.3 is 3/10, which is step 15 of 50 exactly."""
        return Fraction(str(self.at))


def _given(of: Wanted, name: str) -> bool:
    return getattr(of, name) is not None


def _is_progress(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        return False
    return math.isfinite(value) and 0 <= value < 1


def _among(name: str, value: object, names: tuple[str, ...]) -> None:
    if value not in names:
        raise RecipeError(
            f"there is no {value!r}", where=name, advice=f"Choose one of {', '.join(names)}"
        )


def _whole(name: str, value: object, most: int | None = None) -> None:
    if value is None:
        return
    if type(value) is not int or value < 1 or (most is not None and value > most):
        limits = f"from 1 to {most}" if most else "above 0"
        raise RecipeError(
            f"{value!r} is out of range", where=name, advice=f"Give a whole number {limits}"
        )
