"""One way, applied, timed over whole images and taken away again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...runtime import Bundle
from .layers import roots
from .memory import Peak
from .stopwatch import Stopwatch, wait
from .ways import Way

_FEW = 2
_SLOW, _PATIENCE = 4, 60.0
"""How many times slower than the base model, and for how many seconds, before images are
extrapolated."""


@dataclass
class Samples:
    """What was measured of one way, round by round, in seconds and bytes."""

    attach: list[float] = field(default_factory=list[float])
    detach: list[float] = field(default_factory=list[float])
    steps: list[float] = field(default_factory=list[float])
    images: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[int] = field(default_factory=list[int])
    extrapolated: bool = False
    reason: str = ""

    def add(self, count: int, image: float, step: float) -> None:
        """The time of an image of `count` steps."""
        self.images[count].append(image)
        self.steps.append(step)


class Measure:
    """Measures one way after the other in the same pipeline.

    Args:
        pipe: Any pipeline.
        bundle: What the ways apply.
        draw: Paints one image in that many steps.
        steps: Numbers of steps of the images.
        device: Where the denoiser computes.
        in_a_row: Images of each number of steps per call.
        compiled: Whether a first image compiles.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - any pipeline
        bundle: Bundle,
        draw: Callable[[int], object],
        steps: tuple[int, ...],
        device: torch.device,
        in_a_row: int,
        *,
        compiled: bool,
    ) -> None:
        self._pipe, self._bundle, self._draw = pipe, bundle, draw
        self._steps, self._few = steps, min(_FEW, *steps)
        self._device, self._in_a_row, self._compiled = device, in_a_row, compiled
        self._peak = Peak(device)
        denoisers = [getattr(pipe, name) for name in roots(bundle, pipe)]
        self._watch = Stopwatch(denoisers, device)
        with self._watch:
            _, denoising = self._image(self._few)
        self._base = denoising / self._few

    def __call__(self, way: Way, samples: Samples) -> None:
        """Add one round of a way to its samples."""
        if not way.staged:
            self._peak.start()
        begin = self._now()
        with way.on(self._bundle, self._pipe):
            attached = self._now()
            if way.staged:
                self._peak.start()
            # Inside, so that it begins before what the way has put in front of the denoiser.
            with self._watch:
                self._round(way, samples)
            memory = self._peak.read()
            end = self._now()
        samples.detach.append(self._now() - end)
        samples.attach.append(attached - begin)
        if memory is not None:
            samples.memory.append(memory)

    def _round(self, way: Way, samples: Samples) -> None:
        if self._compiled:
            self._image(self._few)
        image, denoising = self._image(self._few)
        step = denoising / self._few
        if step > max(_SLOW * self._base, _PATIENCE / max(self._steps)):
            samples.extrapolated = True
            for count in self._steps:
                samples.add(count, image + (count - self._few) * step, step)
            return
        if way.switches:
            # An image begins where the one before has ended: with switching back.
            self._image(min(self._steps))
        for _ in range(self._in_a_row):
            for count in self._steps:
                image, denoising = self._image(count)
                samples.add(count, image, denoising / count)

    def _image(self, count: int) -> tuple[float, float]:
        """Seconds of an image, and of its denoising."""
        self._watch.reset()
        begin = self._now()
        self._draw(count)
        return self._now() - begin, self._watch.read()

    def _now(self) -> float:
        wait(self._device)
        return time.perf_counter()
