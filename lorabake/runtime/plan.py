"""The plan: per layer, what is applied at which progress. Pure functions of time, no counters.

Progress p is `position / count` of the denoiser's step, a `Fraction` in [0, 1): exact, so that
the same step always falls on the same side of a threshold and in the same bin of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Pattern = Literal["linear", "modulo"]

Half = Literal["both", "conditional"]
"""Where LoRAs act: in both halves of classifier-free guidance, or in the conditional one alone."""

CONTENT, STYLE = 0, 1


@dataclass(frozen=True)
class Scale:
    """The scale function S(p) of K-LoRA (arXiv 2502.18461), times gamma.

    Attributes:
        pattern: `linear`: S = alpha·p + beta (eq. 7); `modulo`: S* = (alpha·p + beta) mod alpha
            (supplement). From beta < alpha both start alike; where S reaches alpha, S* falls to 0
            and rises again. With alpha 1.5: for beta 0.5 at p = 2/3, from where it stays below
            0.5, so the last third leans to content; for beta 1.3 at p = 2/15, so only the first
            steps (S* from 1.3) and the last (up to 1.3) lean to style.
        alpha: Slope; greater than 0 for `modulo`.
        beta: Offset.
        gamma: Ratio of the two LoRAs' total magnitudes (eq. 9), greater than 0.
    """

    pattern: Pattern
    alpha: float
    beta: float
    gamma: float

    def at(self, progress: Fraction) -> float:
        """S'(p) = gamma·S(p) (eqs. 7 and 10)."""
        value = self.alpha * float(progress) + self.beta
        return self.gamma * (value if self.pattern == "linear" else value % self.alpha)


@dataclass(frozen=True)
class Constant:
    """Everything that the layer has is applied all the time, each source times its gate."""

    gates: tuple[float, ...]


@dataclass(frozen=True)
class Threshold:
    """Content or style by K-LoRA's comparison.

    Attributes:
        scores: (S_c, S_s), sums of the K largest |ΔW| entries of content and style.
    """

    scores: tuple[float, float]


@dataclass(frozen=True)
class Table:
    """Content (0) or style (1) per bin of progress: bin = floor(p · len(select))."""

    select: tuple[int, ...]


@dataclass(frozen=True)
class Live:
    """Content or style by the features of this very input, decided in each call (`Selection`)."""


Rule = Constant | Threshold | Table | Live


@dataclass(frozen=True)
class Plan:
    """What a method decided: one rule per layer, in the layers' order.

    Attributes:
        rules: One per layer.
        scale: S'(p) for the `Threshold` rules; None if there are none.
    """

    rules: tuple[Rule, ...]
    scale: Scale | None = None


def select(rule: Rule, scale: Scale | None, progress: Fraction) -> int | None:
    """The source that a layer applies at this progress: 0 content, 1 style, None both or live.

    K-LoRA chooses content where S_c ≥ S_s·gamma·S(p) (eq. 10); ties are content.
    """
    match rule:
        case Constant() | Live():
            return None
        case Table(bins):
            return bins[int(progress * len(bins))]
        case Threshold((content, style)):
            if scale is None:
                raise ValueError("a threshold needs a scale function")
            return CONTENT if content >= style * scale.at(progress) else STYLE


def gates(rule: Rule, scale: Scale | None, progress: Fraction) -> tuple[float, ...]:
    """The gate of each source at this progress, in stacking order; not of a `Live` rule."""
    if isinstance(rule, Live):
        raise ValueError("a live rule has no gates before its input is known")
    chosen = select(rule, scale, progress)
    if isinstance(rule, Constant):
        return rule.gates
    return tuple(float(i == chosen) for i in (CONTENT, STYLE))


def steps_of(count: int) -> Sequence[Fraction]:
    """Progress of step i of `count`: i / count, i = 0 … count − 1."""
    return [Fraction(i, count) for i in range(count)]
