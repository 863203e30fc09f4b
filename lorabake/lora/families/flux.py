"""FLUX.1."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import FLUX2_WIDTHS, JOINT_BLOCK, SD3_WIDTHS, T5, spell
from .unet import CLIP

_MODULES = re.compile(
    rf"{JOINT_BLOCK})"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)"
    r"|x_embedder|context_embedder|norm_out\.linear|proj_out"
    r"|time_text_embed\.(timestep|guidance|text)_embedder\.linear_[12]"
)
_ALIAS = re.compile(r"\bflux(?!-?2)")
_BLOCKS, _SINGLE_BLOCKS = 19, 38
"""Models built alike with more of them are others, for example HunyuanVideo."""


def _fit(evidence: Evidence) -> Fit:
    if "transformer" not in evidence.components:
        return Fit.POSSIBLE
    if (
        evidence.blocks("transformer_blocks") > _BLOCKS
        or evidence.blocks("single_transformer_blocks") > _SINGLE_BLOCKS
        or evidence.widths(r"\.attn\.(to|add)_[qkv]") & (SD3_WIDTHS | FLUX2_WIDTHS)
    ):
        return Fit.NO
    if evidence.dialect == "xlabs" or evidence.has(r"\.single_transformer_blocks\."):
        return Fit.SURE
    return Fit.LIKELY


FAMILY = Family(
    name="flux",
    title="FLUX.1",
    architecture="flux-1-dev/lora",
    denoiser="transformer",
    hub_id="black-forest-labs/FLUX.1-dev",
    modules={"transformer": _MODULES, "text_encoder": CLIP, "text_encoder_2": T5},
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
