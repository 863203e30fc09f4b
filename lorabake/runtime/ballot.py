"""The ballot: what the live layers of a denoiser chose, call by call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .clock import Clock
from .part import Part, batch
from .patch import Uncopyable
from .plan import CONTENT, STYLE

UNUSED, SEVERAL = math.nan, math.inf
"""In the place of a margin: of a layer that was not computed; of one without a margin for a sample.

That is so where it was computed in several parts, from rows that are nobody's, or from features
that are no numbers.
"""

NOBODY = -1
"""In the place of a choice, where one of the samples has none."""


class Ballot(Uncopyable):
    """Hooks around a denoiser that tell its layers the number of samples, and keep their choices.

    Args:
        denoiser: What the pipeline calls, which may be a torch.compile wrapper.
        clock: Tells the progress.
        layers: Names of its live layers.
        part: Which samples of a call choose, the others being without the LoRAs; None for all.

    Attributes:
        open: Whether a call is under way in which samples choose.
        samples: That choose in the call of the moment, or the last one.
        margins: What its layers chose by, d_c − d_s, float32 `[layers, samples]`; they write it.
        masks: By their length, which tokens of a sample are no padding, bool `[samples, tokens]`;
            as far as the denoiser is told.
        calls: Progress and choices of all calls up to now, int8 `[layers, samples]`: 0 content,
            1 style, or -1 for all samples.
    """

    def __init__(
        self, denoiser: nn.Module, clock: Clock, layers: Sequence[str], part: Part | None = None
    ) -> None:
        self.open, self.samples = False, 1
        self.margins = torch.full((len(layers), 1), UNUSED)
        self.masks: dict[int, Tensor] = {}
        self.calls: list[tuple[Fraction, Tensor]] = []
        self._clock, self._rows = clock, {layer: i for i, layer in enumerate(layers)}
        self._progress, self._part = Fraction(0), part
        self._handles = [
            denoiser.register_forward_pre_hook(self._open, prepend=True, with_kwargs=True),  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - the decorator is typed loosely
            denoiser.register_forward_hook(self._close),  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - likewise
        ]

    def row(self, layer: str) -> int:
        """A layer's own in `margins`."""
        return self._rows[layer]

    def decisions(self, progress: Sequence[Fraction]) -> dict[str, list[list[list[int] | None]]]:
        """By layer and progress: what each call chose for each sample, as a report has it."""
        calls: dict[Fraction, list[list[list[int] | None]]] = {now: [] for now in progress}
        for now, chosen in self.calls:
            rows: list[list[int]] = chosen.tolist()
            calls[now].append([None if NOBODY in row else row for row in rows])
        return {
            layer: [[rows[i] for rows in calls[now]] for now in progress]
            for layer, i in self._rows.items()
        }

    def remove(self) -> None:
        """Take the hooks off, and what is kept for a report off the device."""
        while self._handles:
            self._handles.pop().remove()
        self.calls = [(now, chosen.cpu()) for now, chosen in self.calls]

    # Kept out of compiled graphs, which write into `margins` in place.
    @torch.compiler.disable
    @torch.inference_mode(False)
    def _open(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._progress = self._clock.progress(args, kwargs)
        samples, device = batch((*args, *kwargs.values()))
        masks, mine = _masks(kwargs, samples), slice(0, samples)
        if self._part is not None:
            start, stop, of = self._part.share
            mine = slice(samples * start // of, samples * stop // of)
        if (samples := mine.stop - mine.start) == 0:
            return
        if samples != self.samples or device != self.margins.device:
            self.samples = samples
            self.margins = self.margins.new_empty((len(self.margins), samples), device=device)
        self.margins.fill_(UNUSED)
        self.masks = {length: mask[mine] for length, mask in masks.items()}
        self.open = True

    @torch.compiler.disable
    @torch.inference_mode(False)
    def _close(self, *_: object) -> None:
        if not self.open:
            return
        self.open = False
        chosen = torch.where(self.margins < 0, STYLE, CONTENT)
        known = self.margins.isfinite().all(1, keepdim=True)
        self.calls.append((self._progress, torch.where(known, chosen, NOBODY).to(torch.int8)))


def _masks(kwargs: Mapping[str, Any], samples: int) -> dict[int, Tensor]:
    found = (x for name, x in kwargs.items() if name.endswith("mask") and isinstance(x, Tensor))
    return {x.shape[1]: x > 0 for x in found if x.ndim == 2 and len(x) == samples}
