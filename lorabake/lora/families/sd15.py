"""Stable Diffusion 1.x, and UNets built like it."""

from __future__ import annotations

import re
from functools import partial

from .evidence import Evidence
from .family import Family, Fit
from .unet import CLIP, UNET, is_deep, spell, starts_with_attention

_ALIAS = re.compile(r"\b(sd|stable-diffusion)-?v?1(-?[345])?\b|\bv1-5-pruned")
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def _fit(evidence: Evidence) -> Fit:
    if is_deep(evidence) or evidence.context in (1024, 2048):
        return Fit.NO
    if evidence.context == 768:
        return Fit.SURE
    if "sgm" in evidence.dialect:
        return Fit.NO
    if starts_with_attention(evidence):
        return Fit.LIKELY
    return Fit.POSSIBLE


FAMILY = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    architecture="stable-diffusion-v1/lora",
    denoiser="unet",
    hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
    modules={"unet": UNET, "text_encoder": CLIP},
    alias=_ALIAS,
    fit=_fit,
    spell=partial(spell, _PREFIXES),
)
