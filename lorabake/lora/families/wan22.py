"""Wan 2.2 with two denoisers, the second one for the last steps, which have little noise.

Only diffusers has names for both in one file; other apps take one file for each.
"""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import spell
from .wan import MODULES

_ALIAS = re.compile(r"\bwan-?2-?2\b")


def _fit(evidence: Evidence) -> Fit:
    return Fit.SURE if "transformer_2" in evidence.components else Fit.NO


FAMILY = Family(
    name="wan22",
    title="Wan 2.2 A14B",
    architecture="wan-2.2/lora",
    denoiser="transformer",
    hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    modules={"transformer": MODULES, "transformer_2": MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=spell,
)
