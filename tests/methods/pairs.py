"""Seeded random pairs: mixed ranks, alpha ≠ rank, one-sided layers, convolutions, text encoders."""

from __future__ import annotations

import torch

from lorabake.lora.pairs import Pair
from lorabake.lora.types import LayerName, LowRank

SHAPES: dict[str, tuple[int, ...]] = {
    **{f"unet.down_blocks.0.attentions.0.to_q.{i}": (24, 16 + i) for i in range(12)},
    **{f"unet.mid_block.resnets.0.conv{i}": (10, 6, 3, 3) for i in range(3)},
    "unet.up_blocks.0.resnets.0.conv_shortcut": (12, 8, 1, 1),
    "unet.conv_out": (2, 3, 1, 1),
    "text_encoder.text_model.layers.0.q_proj": (16, 16),
    "text_encoder_2.text_model.layers.0.q_proj": (20, 20),
}


def factors(shape: tuple[int, ...], dice: torch.Generator) -> LowRank:
    """Random factors of a random rank, strength and alpha / rank."""
    out, width, *kernel = shape
    rank = int(torch.randint(1, 9, (), generator=dice))
    size, alpha = 10 ** (2 * torch.rand((), generator=dice)), [1, 2, 6, 16][rank % 4]
    return LowRank(
        torch.randn(rank, width, *kernel, generator=dice),
        torch.randn(out, rank, *(1 for _ in kernel), generator=dice) * size,
        alpha / rank,
    )


def random_pairs(seed: int, zeroed: str = "") -> tuple[Pair, ...]:
    """Both have most layers, each lacks some; the style left the layer `zeroed` alone."""
    dice = torch.Generator().manual_seed(seed)
    pairs: list[Pair] = []
    for i, (path, shape) in enumerate(SHAPES.items()):
        content, style = factors(shape, dice), factors(shape, dice)
        if path == zeroed:
            style = LowRank(style.down, torch.zeros_like(style.up))
        component, _, module = path.partition(".")
        lacks = (i + seed) % 7
        pairs.append(
            Pair(
                LayerName(component, module),
                None if lacks == 2 else content,
                None if lacks == 5 else style,
            )
        )
    return tuple(pairs)
