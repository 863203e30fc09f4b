"""One picture of each LoRA, painted by itself on the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..lora.pairs import Pair
from ..pipelines.conditions import size
from ..pipelines.references import sample
from .branches import CONTENT, STYLE
from .scene import Tell, Wanted, loaded


def portraits(
    pairs: Sequence[Pair], base: str | Path, wanted: Wanted, device: torch.device, tell: Tell
) -> tuple[Tensor | None, Tensor | None]:
    """Paint one picture of the content, one of the style, each with only its LoRA at work.

    Args:
        pairs: Layers of the two LoRAs.
        base: Base model, a folder or a hub id.
        wanted: What the LoRAs are asked to show; one that has images of its own paints none.
        device: Where to compute.
        tell: Called as `tell(stage, done, total)`.

    Returns:
        `[1, 3, height, width]` in [0, 1], float32 on the CPU; None for a LoRA that paints none.

    Raises:
        BaseModelError: The base model cannot be loaded or called.
        PairError: The base model lacks some of the layers.
    """
    pipe, branches = loaded(pairs, base, wanted.precision, device, tell)
    pixels = size(pipe, wanted.resolution)
    total = wanted.images.count(None)
    found: list[Tensor | None] = []
    for images, prompt, sides in zip(wanted.images, wanted.prompts, (CONTENT, STYLE), strict=True):
        if images is not None:
            found.append(None)
            continue
        with branches.acting(sides):
            picture = sample(
                pipe, prompt, count=1, pixels=pixels, steps=wanted.steps,
                guidance=wanted.guidance, seed=wanted.seed, output="pt",
            )  # fmt: skip
        found.append(picture)
        tell("painting references", len(found) - found.count(None), total)
    branches.remove()
    return found[0], found[1]
