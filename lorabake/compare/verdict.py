"""Which variant to take, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .statistics import Mean, Numbers, mean
from .variants import DIRECT


@dataclass(frozen=True)
class Verdict:
    """What is recommended.

    Attributes:
        label: The variant; None if nothing can be told.
        certain: Whether the interval of its difference to the direct merge excludes 0.
        reason: Why, a sentence or two.
        difference: To the direct merge, by harmonic mean; None for the direct merge itself.
        level: Other variants from which it cannot be told apart.
    """

    label: str | None
    certain: bool
    reason: str
    difference: Mean | None = None
    level: tuple[str, ...] = ()


def verdict(values: Mapping[str, Numbers], *, unit: str = "pictures") -> Verdict:
    """Recommend by the mean of harmonic means of subject and style.

    Args:
        values: By label, the direct merge among them, `[n]`; values at one place are paired.
        unit: What is counted, for the sentence.
    """
    if not values:
        return Verdict(
            None, False, "Nothing is recommended: subject and style could not both be scored. "
            "Look at the pictures.",
        )  # fmt: skip
    best = max(values, key=lambda label: (values[label].mean(), label == DIRECT))
    own = mean(values[best])
    if own.mean <= 0:
        return Verdict(None, False, "Nothing is recommended: no picture shows both.")
    level = tuple(
        label for label in values
        if label != best and mean(values[best] - values[label]).side <= 0
    )  # fmt: skip
    if best == DIRECT:
        reason = (
            f"The direct merge has the highest harmonic mean of subject and style, {own.mean:.3f} "
            f"over {own.n} {unit}: none of the methods is better here."
        )
        return Verdict(best, not level, reason + _level(level), None, level)
    difference = mean(values[best] - values[DIRECT])
    certain = difference.side > 0
    reason = (
        f"It has the highest harmonic mean of subject and style, {own.mean:.3f} over {own.n} "
        f"{unit}, {_signed(difference.mean)} against the direct merge"
    )
    if difference.low is None or difference.high is None:
        reason += ". One picture says nothing about the next: raise the number of seeds."
    elif certain:
        reason += f" (95 % interval {_range(difference)}, which excludes 0)."
    else:
        reason += (
            f". That is not certain: the 95 % interval of the difference, {_range(difference)}, "
            "includes 0. More seeds or prompts would tell."
        )
    others = tuple(label for label in level if label != DIRECT)
    return Verdict(best, certain, reason + _level(others), difference, level)


def _level(labels: tuple[str, ...]) -> str:
    return f" It cannot be told apart from {', '.join(labels)}." if labels else ""


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _range(found: Mean) -> str:
    return f"{_signed(found.low or 0.0)} to {_signed(found.high or 0.0)}"
