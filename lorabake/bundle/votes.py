"""Votes: what layers chose live, run by run, and the static plan that their majority makes."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..runtime.manifest import MAX_BINS
from ..runtime.plan import CONTENT, STYLE
from ..runtime.report import Applied, Report

NONE = -1
"""In the place of a vote that nobody cast."""

_LONGEST = 1_000_000
"""Far above the length of any schedule; its inverse square is far above the error of a double."""


@dataclass(frozen=True, eq=False)
class Votes:
    """The decisions of the layers that choose live; each is a vote.

    Attributes:
        progress: All that occurred, ascending.
        choices: int8 `[runs, layers, progress, calls, samples]`: 0 content, 1 style, -1 nobody.
            Calls are those of one run at one progress, samples those of one call: the halves of
            classifier-free guidance, for example.
    """

    progress: tuple[Fraction, ...]
    choices: Tensor

    def counts(self) -> Tensor:
        """Votes of all runs, calls and samples: int64 `[2, layers, progress]`, content first."""
        each = [(self.choices == source).sum((0, 3, 4)) for source in (CONTENT, STYLE)]
        return torch.stack(each)

    def bins(self, count: int) -> list[int]:
        """In which of `count` bins each progress falls: floor(p · count)."""
        return [int(p * count) for p in self.progress]

    @property
    def positions(self) -> int:
        """The fewest bins that put every progress at the start of its own.

        As many as the schedule has entries, if all were visited; at most what a plan may have.
        """
        return min(math.lcm(*(p.denominator for p in self.progress)), MAX_BINS)


def votes(reports: Sequence[Report], layers: Sequence[int]) -> Votes:
    """The decisions in the reports of some replays.

    Args:
        reports: One per run, at least one; all of the same bundle.
        layers: Which of its layers choose live, by their index.
    """
    every = [[_exact(p) for p in report["progress"]] for report in reports]
    progress = sorted({p for one in every for p in one})
    of = [[report["layers"][i] for i in layers] for report in reports]
    cells = [at for run in of for layer in run for at in layer["decisions"]]
    calls = max(map(len, cells), default=0)
    samples = max((len(call) for at in cells for call in at if call), default=0)
    shape = (len(reports), len(layers), len(progress), calls, samples)
    choices = torch.full(shape, NONE, dtype=torch.int8)
    for run, found, seen in zip(choices, of, every, strict=True):
        rows = [_padded(layer, calls, samples) for layer in found]
        where = [progress.index(p) for p in seen]
        run[:, where] = torch.tensor(rows, dtype=torch.int8).view(run[:, where].shape)
    return Votes(tuple(progress), choices)


def table(votes: Votes, bins: int) -> Tensor:
    """The majority: what most votes in a cell, a layer at a bin of progress, were for.

    A tie is content, as where d_c = d_s. A cell without votes (a denoiser that runs only part of
    the schedule, a layer that a call skipped) takes after the nearest bin of its layer that has
    some, of two the earlier one. A layer without any is content: a tie of none.

    Args:
        votes: At least one progress.
        bins: Into how many equal parts progress is cut.

    Returns:
        int8 `[layers, bins]`: 0 content, 1 style.
    """
    found = votes.counts()
    cells = found.new_zeros(2, found.shape[1], bins)
    cells.index_add_(2, torch.tensor(votes.bins(bins)), found)
    rows: list[list[int]] = []
    for content, style in zip(*cells.tolist(), strict=True):
        seen = [b for b in range(bins) if content[b] + style[b]]
        where = [_nearest(seen, b) for b in range(bins)] if seen else range(bins)
        rows.append([STYLE if style[b] > content[b] else CONTENT for b in where])
    return torch.tensor(rows, dtype=torch.int8)


def _nearest(seen: Sequence[int], bin_: int) -> int:
    """Which of the ascending `seen` is nearest, of two the smaller."""
    after = bisect(seen, bin_)
    return min(seen[max(after - 1, 0) : after + 1], key=lambda b: abs(b - bin_))


def _exact(progress: float) -> Fraction:
    """The position / count of a step that a report has as a number."""
    return Fraction(progress).limit_denominator(_LONGEST)


def _padded(layer: Applied, calls: int, samples: int) -> list[list[list[int]]]:
    """A layer's decisions, `[progress, calls, samples]`."""
    return [
        [
            [*(call or ()), *(NONE for _ in range(samples - len(call or ())))]
            for call in (*at, *(None for _ in range(calls - len(at))))
        ]
        for at in layer["decisions"]
    ]
