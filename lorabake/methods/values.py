"""Checked values: what a method's parameters may be, told in one sentence if they are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecipeError
from ..runtime.plan import Pattern, Scale


def shown(value: object) -> str:
    """`value` for a message; numbers of thousands of digits have no decimal form in Python."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"this {type(value).__name__}"


def number(name: str, value: object) -> float:
    """`value` as a finite float; integers are numbers, truth values and text are not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(result := float(value)):
                return result
        except OverflowError:
            pass
    raise RecipeError(
        f"{shown(value)} is not a finite number", where=name, advice="Give one such as 1.5"
    )


def positive(name: str, value: object, why: str = "") -> float:
    """`value` as a finite float greater than 0."""
    result = number(name, value)
    if result <= 0:
        raise RecipeError(
            f"{shown(value)} must be greater than 0{why}",
            where=name,
            advice="Give a number such as 1.5",
        )
    return result


def not_negative(name: str, value: object) -> float:
    """`value` as a finite float of at least 0."""
    result = number(name, value)
    if result < 0:
        raise RecipeError(
            f"{shown(value)} must not be negative",
            where=name,
            advice="Give a number such as 0.01, or 0 for none",
        )
    return result


def within(name: str, value: object, least: float, most: float) -> float:
    """`value` as a finite float from `least` to `most`."""
    result = number(name, value)
    if not least <= result <= most:
        raise RecipeError(
            f"{shown(value)} is out of range",
            where=name,
            advice=f"Give a number from {least:g} to {most:g}",
        )
    return result


def text(name: str, value: object) -> str:
    """`value`, which is a text or a path."""
    value = str(value) if isinstance(value, Path) else value
    if not isinstance(value, str):
        raise RecipeError(f"{shown(value)} is not a text", where=name, advice="Put it in quotes")
    return value


def flag(name: str, value: object) -> bool:
    """`value`, which is true or false."""
    if not isinstance(value, bool):
        raise RecipeError(
            f"{shown(value)} is neither true nor false", where=name, advice="Give one of the two"
        )
    return value


def whole(name: str, value: object, least: int, most: int) -> int:
    """`value` as an integer between `least` and `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RecipeError(
            f"{shown(value)} is not a whole number from {least} to {most}",
            where=name,
            advice=f"Give one such as {max(least, 1)}",
        )
    return value


def one_of(name: str, value: object, options: tuple[str, ...]) -> str:
    """`value`, which is one of `options`."""
    if not isinstance(value, str) or value not in options:
        raise RecipeError(
            f"{shown(value)} is not possible",
            where=name,
            advice=f"Choose from {', '.join(options)}",
        )
    return value


def store(params: object, **values: object) -> None:
    """Put checked values into a frozen dataclass that is just being made."""
    for name, value in values.items():
        object.__setattr__(params, name, value)


@dataclass(frozen=True)
class ScaleParams:
    """Parameters of K-LoRA's scale function.

    Attributes:
        pattern: `linear` (eq. 7) or `modulo` (S* of the supplement).
        alpha: Slope; greater than 0 for `modulo`.
        beta: Offset.
    """

    pattern: Pattern = "linear"
    alpha: float = 1.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        pattern = one_of("pattern", self.pattern, ("linear", "modulo"))
        modulo = pattern == "modulo"
        alpha = (
            positive("alpha", self.alpha, " for the modulo pattern")
            if modulo
            else number("alpha", self.alpha)
        )
        store(self, alpha=alpha, beta=number("beta", self.beta))

    def scale(self, gamma: float) -> Scale:
        """The scale function with this gamma."""
        return Scale(self.pattern, self.alpha, self.beta, gamma)
