"""FLUX.2: dev, and Klein in two sizes."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import FLUX2_WIDTHS, SD3_WIDTHS, spell

_MODULES = re.compile(
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|(ff|ff_context)\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    r"|(double_stream_modulation_(img|txt)|single_stream_modulation|norm_out)\.linear"
    r"|time_guidance_embed\.(timestep|guidance)_embedder\.linear_[12]"
    r"|x_embedder|context_embedder|proj_out"
)
_OWN = r"_stream_modulation|time_guidance_embed|to_qkv_mlp_proj|\.ff(_context)?\.linear_"
_ALIAS = re.compile(r"\bflux-?2|\bklein\b")
_BLOCKS = 8
"""Double blocks of dev and of the larger Klein; the smaller one has 5."""


def _fit(evidence: Evidence) -> Fit:
    if evidence.has(_OWN) or evidence.has(r"\.single_transformer_blocks\.\d+\.attn\.to_out$"):
        return Fit.SURE
    if evidence.blocks("transformer_blocks") > _BLOCKS:
        return Fit.NO
    widths = evidence.widths(r"\.attn\.(to|add)_[qkv]")
    if widths & FLUX2_WIDTHS:
        return Fit.LIKELY
    return Fit.NO if widths & SD3_WIDTHS else Fit.POSSIBLE


FAMILY = Family(
    name="flux2",
    title="FLUX.2",
    architecture="flux-2-dev/lora",
    denoiser="transformer",
    hub_id="black-forest-labs/FLUX.2-dev",
    modules={"transformer": _MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
