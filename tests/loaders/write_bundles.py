"""Writes a bundle of each family and what it does: `python -m tests.loaders.write_bundles DIR`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import lorabake

from ..oracle import write_lora
from . import pipes

STRENGTHS = (0.7, 3.0)


def write(folder: Path, name: str) -> None:
    """Write `<name>.safetensors`, and `<name>.oracle` with the dense updates that it stands for."""
    case = pipes.CASES[name]
    shapes = {
        layer: tuple(module.weight.shape)
        for layer, module in pipes.layers(case.build()).items()
        if re.search(case.within, layer)
    }
    sources = (folder / f"{name}.content", folder / f"{name}.style")
    loras = [write_lora(path, shapes, "peft", seed=i) for i, path in enumerate(sources)]
    lorabake.make(
        *sources, folder / f"{name}.safetensors",
        content_strength=STRENGTHS[0], style_strength=STRENGTHS[1],
    )  # fmt: skip
    total: dict[str, torch.Tensor] = {}
    for strength, dense in zip(STRENGTHS, loras, strict=True):
        for layer, delta in dense.delta.items():
            total[layer] = total.get(layer, 0) + strength * delta
    save_file(total, folder / f"{name}.oracle")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in pipes.CASES:
        write(folder, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
