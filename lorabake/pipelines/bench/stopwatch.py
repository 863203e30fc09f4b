"""Seconds between the first and the last call of the denoisers, without waiting in between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Stopwatch:
    """Runs while these modules are called, inside a `with` block.

    Args:
        modules: The denoisers, as the pipeline calls them.
        device: Where they compute.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._modules, self._device = modules, device
        self._handles: list[RemovableHandle] = []
        self._marks: list[Any] = []

    def __enter__(self) -> Self:
        for module in self._modules:
            # Before everything else: what a way does before the first call is part of the image.
            before = module.register_forward_pre_hook(self._begin, prepend=True)
            self._handles += [before, module.register_forward_hook(self._end)]
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def reset(self) -> None:
        """Before an image."""
        self._marks = []

    def read(self) -> float:
        """Seconds of denoising of an image; call `wait` before."""
        first, last = self._marks
        if self._device.type == "cuda":
            return first.elapsed_time(last) / 1000
        return last - first

    def _begin(self, *_: object) -> None:
        if not self._marks:
            self._marks = [self._now()] * 2

    def _end(self, *_: object) -> None:
        self._marks[1] = self._now()

    def _now(self) -> Any:  # noqa: ANN401 - a CUDA event or a number
        if self._device.type == "cuda":
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            return event
        wait(self._device)
        return time.perf_counter()
