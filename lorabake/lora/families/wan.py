"""Wan 2.1, and what of 2.2 has one denoiser; keys of its own code, the only ones all apps map."""

from __future__ import annotations

import re

from ..natives.wan import NATIVE
from ..types import LayerName
from .evidence import Evidence
from .family import Family, Fit

MODULES = re.compile(
    r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|add_[kv]_proj)|ffn\.net\.(0\.proj|2))"
    r"|condition_embedder\.((time|text)_embedder\.linear_[12]|time_proj"
    r"|image_embedder\.ff\.net\.(0\.proj|2))|proj_out"
)
_ALIAS = re.compile(r"\bwan-?(ai/)?(wan)?-?(2-?1|2-1|video|t2v|i2v)")


def _fit(evidence: Evidence) -> Fit:
    return Fit.SURE if evidence.has(r"\.blocks\.\d+\.|\.condition_embedder\.") else Fit.POSSIBLE


def _spell(name: LayerName) -> str | None:
    home = NATIVE.home(name.module)
    return home and f"diffusion_model.{home[0].format(home[1])}"


FAMILY = Family(
    name="wan",
    title="Wan 2.1",
    architecture="wan-2.1/lora",
    denoiser="transformer",
    hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    modules={"transformer": MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=_spell,
)
