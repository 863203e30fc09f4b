"""Bundles written straight from pairs, and column coefficients to weight them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lorabake.bundle import write
from lorabake.lora import Pair, families
from lorabake.runtime.manifest import Layer, Manifest, Source
from lorabake.runtime.plan import Constant

Coefficients = list[tuple[Tensor, Tensor] | None]


def baked(
    path: Path,
    pairs: Sequence[Pair],
    dtype: torch.dtype = torch.float32,
    family: str = "sd15",
    strengths: tuple[float, float] = (1.0, 1.0),
) -> Path:
    """Write a bundle that applies both sources all the time."""
    layers = [
        Layer(
            *pair.name, *families.get(family).keys(pair.name), pair.ranks, Constant((1.0, 1.0)),
            pair.columns,
        )
        for pair in pairs
    ]  # fmt: skip
    sources = [
        Source(role, f"a {role}", "0" * 64, strength, (), None, None)
        for role, strength in zip(("content", "style"), strengths, strict=True)
    ]
    manifest = Manifest(
        "ziplora", {}, family, None, tuple(sources), tuple(layers), None, "0" * 64
    )  # fmt: skip
    with path.open("wb") as file:
        write(file, manifest, pairs, dtype, metadata={})
    return path


def drawn(pairs: Sequence[Pair], seed: int = 0) -> Coefficients:
    """Random coefficients of both signs, most near 1, some tiny; for all layers that have both."""
    g = torch.Generator().manual_seed(seed)

    def one(width: int) -> Tensor:
        m = 1 + 0.4 * torch.randn(width, generator=g)
        m[torch.rand(width, generator=g) < 0.1] *= 1e-5
        return m

    return [
        (one(pair.content.shape[1]), one(pair.content.shape[1]))
        if pair.content is not None and pair.both
        else None
        for pair in pairs
    ]
