"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import FLUX2_WIDTHS, FLUX_WIDTHS, JOINT_BLOCK, SD3_WIDTHS, T5, spell
from .unet import CLIP

_MODULES = re.compile(
    rf"{JOINT_BLOCK}|attn2\.(to_[qkv]|to_out\.0))"
    r"|pos_embed\.proj|context_embedder|norm_out\.linear|proj_out"
    r"|time_text_embed\.(timestep|text)_embedder\.linear_[12]"
)
_ALIAS = re.compile(r"\b(sd|stable-diffusion)-?v?3(-?5|m)?\b")


def _fit(evidence: Evidence) -> Fit:
    if "transformer" not in evidence.components:
        return Fit.POSSIBLE
    sure = evidence.has(r"\.pos_embed\.") or "text_encoder_2" in evidence.components
    if sure or evidence.widths(r"\.(attn2?\.to|attn\.add)_[qkv]") & SD3_WIDTHS:
        return Fit.SURE
    if evidence.has(r"\.attn2\."):  # So have many other models, but not beside joint attention.
        return Fit.SURE if evidence.has(r"\.attn\.") else Fit.LIKELY
    if evidence.widths(r"\.attn\.(to|add)_[qkv]") & (FLUX_WIDTHS | FLUX2_WIDTHS):
        return Fit.NO
    return Fit.POSSIBLE


FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3",
    architecture="stable-diffusion-3-medium/lora",
    denoiser="transformer",
    hub_id="stabilityai/stable-diffusion-3-medium-diffusers",
    modules={
        "transformer": _MODULES,
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
        "text_encoder_3": T5,
    },
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
