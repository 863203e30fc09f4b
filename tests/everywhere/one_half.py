"""Guidance with LoRAs in one half by hand: every call is made with W0 + ΔW and again with W0."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ..runtime.naive_bundle import Spec
from .reference import by_hand


@contextmanager
def in_one_half(pipe: Any, specs: list[Spec], order: str, start: int = 0) -> Generator[None]:
    """Of every call of a denoiser the conditional samples come from W0 + ΔW, the others from W0.

    Args:
        pipe: A pipeline of diffusers.
        specs: Layers of its denoisers.
        order: What the samples in one call are, in their order: `c` and `p` conditional, `u` and
            `i` not; of calls with one sample less all are. Or `calls`, where each half has a call
            of its own, the conditional one first.
        start: Position in the scheduler's timesteps at which the run starts.
    """
    layers = [getattr(pipe, s.component).get_submodule(s.module) for s in specs]
    base = [layer.weight.data for layer in layers]
    denoisers = [getattr(pipe, name) for name in dict.fromkeys(s.component for s in specs)]
    calls = [0]

    def twice(denoiser: Any, *args: Any, **kwargs: Any) -> Any:
        compute = type(denoiser).forward
        mine = compute(denoiser, *args, **kwargs)
        put = [layer.weight.data for layer in layers]
        for layer, weight in zip(layers, base, strict=True):
            layer.weight.data = weight
        other = compute(denoiser, *args, **kwargs)
        for layer, weight in zip(layers, put, strict=True):
            layer.weight.data = weight
        calls[0] += 1
        if order == "calls":
            return mine if calls[0] % 2 else other
        if isinstance(mine, tuple):
            return (_picked(mine[0], other[0], order),)
        mine.sample = _picked(mine.sample, other.sample, order)
        return mine

    with by_hand(pipe, specs, start):
        for denoiser in denoisers:
            denoiser.forward = twice.__get__(denoiser)
        try:
            yield
        finally:
            for denoiser in denoisers:
                del denoiser.forward


def _picked(mine: Any, other: Any, order: str) -> Any:
    if len(mine) < len(order):
        return mine
    n = len(mine) // len(order)
    parts = [(mine if letter in "cp" else other)[i * n : (i + 1) * n]
             for i, letter in enumerate(order)]  # fmt: skip
    if isinstance(mine, list):
        return [x for part in parts for x in part]
    return torch.cat(parts)
