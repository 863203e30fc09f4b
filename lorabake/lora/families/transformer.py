"""What the families of diffusion transformers share."""

from __future__ import annotations

import re

from ..types import LayerName

JOINT_BLOCK = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|(ff|ff_context)\.net\.(0\.proj|2)|(norm1|norm1_context)\.linear"
)
"""Linear modules of a block over image and text tokens; the pattern lacks its last bracket."""

SD3_WIDTHS = frozenset({1536, 2432})
"""Of Stable Diffusion 3 and 3.5 medium, and of 3.5 large; no model with such blocks shares them."""

FLUX2_WIDTHS = frozenset({4096, 6144})
"""Of the larger FLUX.2 Klein and of dev, likewise."""

FLUX_WIDTHS = frozenset({3072})
"""Of FLUX.1, of the smaller FLUX.2 Klein and of Qwen-Image."""

T5 = re.compile(
    r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi(_[01])?|wo))"
)
"""Linear modules of a T5 text encoder: trainers can train them, but no pipeline loads them."""


def spell(name: LayerName) -> str | None:
    """The PEFT key of a layer, which is its path."""
    return None if T5.fullmatch(name.module) else str(name)
