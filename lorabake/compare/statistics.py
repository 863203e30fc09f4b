"""Means with intervals: bootstrap over pictures, or over pairs of LoRAs; seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

RESAMPLES, SEED, LEVEL = 2000, 0, 95


@dataclass(frozen=True)
class Mean:
    """A mean and its percentile bootstrap interval.

    Attributes:
        mean: Of all values.
        low: Lower end of the 95 % interval; None where there is one value only.
        high: Upper end.
        n: Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def side(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Numbers) -> Mean:
    """Mean of `values` `[n]`; the same resamples are drawn for every array of this length.

    Two arrays are paired when their values at one place belong together: the mean of their
    difference has the interval of paired differences.
    """
    n = len(values)
    if n < 2:
        return Mean(float(values.mean()) if n else 0.0, None, None, n)
    picks = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values[picks].mean(1), [tail, 100 - tail])
    return Mean(float(values.mean()), float(low), float(high), n)


def harmonic(a: Numbers, b: Numbers) -> Numbers:
    """2ab / (a + b) of each pair of values; 0 where one of them is not above 0."""
    both = (a > 0) & (b > 0)
    total = np.where(both, a + b, 1.0)
    return np.where(both, 2 * a * b / total, 0.0)
