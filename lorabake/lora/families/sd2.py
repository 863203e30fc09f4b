"""Stable Diffusion 2.x: as 1.x, with a wider text encoder."""

from __future__ import annotations

import re
from functools import partial

from .evidence import Evidence
from .family import Family, Fit
from .unet import CLIP, UNET, is_deep, spell

_ALIAS = re.compile(r"\b(sd|stable-diffusion)-?v?2(-?[01])?\b|\bv2-1-(512|768)")
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def _fit(evidence: Evidence) -> Fit:
    if is_deep(evidence) or evidence.context in (768, 2048) or "sgm" in evidence.dialect:
        return Fit.NO
    if evidence.context == 1024:
        return Fit.SURE
    return Fit.POSSIBLE


FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2.1",
    architecture="stable-diffusion-v2-768-v/lora",
    denoiser="unet",
    hub_id="stabilityai/stable-diffusion-2-1",
    modules={"unet": UNET, "text_encoder": CLIP},
    alias=_ALIAS,
    fit=_fit,
    spell=partial(spell, _PREFIXES),
)
