"""Wan 2.1 and 2.2, of which some have a second denoiser for the last, low-noise steps."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import spell

_MODULES = re.compile(
    r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|add_[kv]_proj)|ffn\.net\.(0\.proj|2))"
    r"|condition_embedder\.((time|text)_embedder\.linear_[12]|time_proj"
    r"|image_embedder\.ff\.net\.(0\.proj|2))|proj_out"
)
_ALIAS = re.compile(r"\bwan-?(2|video|ai|t2v|i2v)")


def _fit(evidence: Evidence) -> Fit:
    return Fit.SURE if evidence.has(r"\.blocks\.\d+\.|\.condition_embedder\.") else Fit.POSSIBLE


FAMILY = Family(
    name="wan",
    title="Wan",
    architecture="wan-2.1/lora",
    denoiser="transformer",
    hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    modules={"transformer": _MODULES, "transformer_2": _MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
