"""A bundle for a tiny pipeline, with layers of all kinds in each of its denoisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lorabake.runtime import Bundle, read

from ...runtime.naive_bundle import LIVE, Spec, one_of_each, write


def bake(
    pipe: Any, denoisers: tuple[str, ...], folder: Path, seed: int
) -> tuple[Bundle, list[Spec]]:
    """Written by the tests' own naive writer; the specs hold the dense ΔW."""
    roots: dict[str, nn.Module] = {name: getattr(pipe, name) for name in denoisers}
    specs = [s for i, n in enumerate(roots) for s in one_of_each(n, roots[n], seed + i)]
    path = write(folder / "bundle.safetensors", specs, roots, seed=seed + 1)
    return read(path), specs


def twins(
    pipe: Any, denoisers: tuple[str, ...], folder: Path, seed: int
) -> tuple[Bundle, list[Spec]]:
    """One that chooses live between two equal LoRAs: whatever it chooses gives W0 + ΔW.

    The specs say so of the content, for those who set weights by hand.
    """
    roots: dict[str, nn.Module] = {name: getattr(pipe, name) for name in denoisers}
    specs = [s for i, n in enumerate(roots) for s in one_of_each(n, roots[n], seed + i)]
    for spec in specs:
        spec.ranks, spec.rule = (max(spec.ranks), max(spec.ranks)), {"live": True}
    path = write(folder / "twins.safetensors", specs, roots, seed=seed + 1, twins=True, **LIVE)
    for spec in specs:
        spec.rule = {"gates": [1.0, 0.0]}
    return read(path), specs
