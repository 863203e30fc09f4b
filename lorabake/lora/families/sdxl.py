"""Stable Diffusion XL: kohya keys with Stability's block names, which all loaders map."""

from __future__ import annotations

import re

from ..sgm import to_sgm
from ..types import LayerName
from . import unet
from .evidence import Evidence
from .family import Family, Fit

_ALIAS = re.compile(r"sd-?xl|stable-diffusion-?xl")
_PREFIXES = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _fit(evidence: Evidence) -> Fit:
    if unet.is_deep(evidence) or evidence.context == 2048:
        return Fit.SURE
    if evidence.context in (768, 1024) or unet.starts_with_attention(evidence):
        return Fit.NO
    if "sgm" in evidence.dialect:
        return Fit.SURE
    if unet.starts_without_attention(evidence):
        return Fit.LIKELY
    return Fit.POSSIBLE


def _spell(name: LayerName) -> str | None:
    if name.component != "unet":
        return unet.spell(_PREFIXES, name)
    module = to_sgm(name.module)
    return module and f"lora_unet_{module}"


FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    architecture="stable-diffusion-xl-v1-base/lora",
    denoiser="unet",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    modules={"unet": unet.UNET, "text_encoder": unet.CLIP, "text_encoder_2": unet.CLIP},
    alias=_ALIAS,
    fit=_fit,
    spell=_spell,
)
