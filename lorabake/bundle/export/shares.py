"""A plan over a stretch of time: for how much of it which gates hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import pairwise

from ...runtime.plan import Rule, Scale, Table, Threshold, gates, steps_of

Gates = tuple[float, ...]
"""One per source."""

Shares = Mapping[Gates, Fraction]
"""For which share of a stretch of time each gates hold; the shares' sum is 1."""

START, END = Fraction(0), Fraction(1)
_ROUNDING = Fraction(1, 10**9)
"""Of a switch's progress, which is computed from scores that are rounded."""


def shares(rule: Rule, scale: Scale | None, start: Fraction = START, end: Fraction = END) -> Shares:
    """The shares over all progress p in [start, end): exact, not sampled.

    A switch that is at an end of the stretch but for rounding is not inside.

    Args:
        rule: A layer's; not `Live`.
        scale: S'(p) for a `Threshold`.
        start: From 0.
        end: Up to 1, greater than `start`.
    """
    inside = {p for p in _switches(rule, scale) if start + _ROUNDING < p < end - _ROUNDING}
    # Between two switches nothing changes, so that any moment there tells.
    return summed(
        (gates(rule, scale, (a + b) / 2), (b - a) / (end - start))
        for a, b in pairwise(sorted({start, *inside, end}))
    )


def shares_of_steps(rule: Rule, scale: Scale | None, steps: int) -> Shares:
    """The shares over the steps of a run, whose progress is i / steps."""
    return summed((gates(rule, scale, p), Fraction(1, steps)) for p in steps_of(steps))


def summed(found: Iterable[tuple[Gates, Fraction]]) -> Shares:
    """Shares, those of the same gates in one."""
    total: dict[Gates, Fraction] = {}
    for at, share in found:
        total[at] = total.get(at, Fraction(0)) + share
    return total


def mean(of: Shares) -> Gates:
    """The gates' mean over time."""
    columns = zip(*([share * Fraction(g) for g in at] for at, share in of.items()), strict=True)
    return tuple(float(sum(column)) for column in columns)


def _switches(rule: Rule, scale: Scale | None) -> list[Fraction]:
    """Progress at which the selection may change, in no order, outside [0, 1) too.

    K-LoRA (arXiv 2502.18461) changes where S'(p) = S_c / S_s (eqs. 7 and 10), and with the pattern
    `modulo`, which has a period of 1 in p, also where S* falls to 0.
    """
    match rule:
        case Table(select):
            return [Fraction(i, len(select)) for i in range(1, len(select))]
        case Threshold((content, style)) if scale is not None and scale.alpha and style:
            alpha, beta, gamma = map(Fraction, (scale.alpha, scale.beta, scale.gamma))
            equal = (Fraction(content) / (Fraction(style) * gamma) - beta) / alpha
            return [equal] if scale.pattern == "linear" else [equal % 1, (-beta / alpha) % 1]
        case _:
            return []
