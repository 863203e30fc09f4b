"""What the UNet families share: module paths, key style, and marks that set SDXL apart."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..kohya import underscored
from ..types import LayerName
from .evidence import Evidence

_RESNET = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)"
_ATTENTION = (
    r"attentions\.\d+\.(proj_in|proj_out|transformer_blocks\.\d+\."
    r"(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)))"
)

UNET = re.compile(
    rf"conv_in|conv_out|(time|add)_embedding\.linear_[12]"
    rf"|mid_block\.({_RESNET}|{_ATTENTION})"
    rf"|(down|up)_blocks\.\d+\.({_RESNET}|{_ATTENTION}|(down|up)samplers\.0\.conv)"
)
"""Linear and convolutional modules of a `UNet2DConditionModel`."""

CLIP = re.compile(
    r"text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])|text_projection"
)
"""Linear modules of a CLIP text encoder."""


def spell(prefixes: Mapping[str, str], name: LayerName) -> str:
    """The kohya key of a layer, with diffusers block names."""
    return f"{prefixes[name.component]}_{underscored(name.module)}"


def is_deep(evidence: Evidence) -> bool:
    """Several transformer blocks per attention, a pooled embedding, or a second text encoder.

    The latter alone may be Stable Diffusion 3's.
    """
    return (
        evidence.has(r"^unet\..*\.transformer_blocks\.[1-9]")
        or evidence.has(r"^unet\.add_embedding\.")
        or {"unet", "text_encoder_2"} <= evidence.components
    )


def starts_with_attention(evidence: Evidence) -> bool:
    """Attention at the finest resolution, or more than three levels: SD 1.x and 2.x, not SDXL."""
    return evidence.has(r"^unet\.(down_blocks\.0\.attentions|(down|up)_blocks\.3\.)")


def starts_without_attention(evidence: Evidence) -> bool:
    """Attention at the second resolution of both sides but not at the finest: SDXL."""
    return (
        evidence.has(r"^unet\.down_blocks\.1\.attentions")
        and evidence.has(r"^unet\.up_blocks\.0\.attentions")
        and not starts_with_attention(evidence)
    )
