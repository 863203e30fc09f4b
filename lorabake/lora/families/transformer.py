"""What the families of diffusion transformers share."""

from __future__ import annotations

import re

from ..types import LayerName

JOINT_BLOCK = (
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|(ff|ff_context)\.net\.(0\.proj|2)|(norm1|norm1_context)\.linear"
)
"""Linear modules of a block over image and text tokens; the pattern lacks its last bracket."""


T5 = re.compile(
    r"encoder\.block\.\d+\.layer\.\d\.(SelfAttention\.[qkvo]|DenseReluDense\.(wi(_[01])?|wo))"
)
"""Linear modules of a T5 text encoder: trainers can train them, but no pipeline loads them."""


def spell(name: LayerName) -> str | None:
    """The PEFT key of a layer, which is its path."""
    return None if T5.fullmatch(name.module) else str(name)
