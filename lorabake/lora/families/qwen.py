"""Qwen-Image."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import FLUX2_WIDTHS, SD3_WIDTHS, spell

_MODULES = re.compile(
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|(img|txt)_mlp\.net\.(0\.proj|2)|(img|txt)_mod\.1)"
    r"|time_text_embed\.timestep_embedder\.linear_[12]|img_in|txt_in|norm_out\.linear|proj_out"
)
_ALIAS = re.compile(r"\bqwen-?image")
_BLOCKS = 60
"""More than any other model with such blocks has."""


def _fit(evidence: Evidence) -> Fit:
    if evidence.has(r"\.(img|txt)_(mlp|mod)\.|\.(img|txt)_in$"):
        return Fit.SURE
    if evidence.blocks("transformer_blocks") == _BLOCKS:
        return Fit.LIKELY
    widths = evidence.widths(r"\.attn\.(to|add)_[qkv]")
    return Fit.NO if widths & (SD3_WIDTHS | FLUX2_WIDTHS) else Fit.POSSIBLE


FAMILY = Family(
    name="qwen",
    title="Qwen-Image",
    architecture="qwen-image/lora",
    denoiser="transformer",
    hub_id="Qwen/Qwen-Image",
    modules={"transformer": _MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
