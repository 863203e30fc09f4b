"""Any other diffusion transformer: its layers are known by their names alone."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import spell

# Layers of language models are `model.layers…`; they are not for any image pipeline.
_ANY = re.compile(r"(?!(language_)?model\.).+")


def _fit(evidence: Evidence) -> Fit:
    blocks = evidence.has(r"^transformer(_2)?\.(\w*blocks|layers)\.\d+\.")
    return Fit.POSSIBLE if blocks else Fit.NO


FAMILY = Family(
    name="dit",
    title="a diffusion transformer",
    architecture="diffusion-transformer/lora",
    denoiser="transformer",
    hub_id=None,
    modules={"transformer": _ANY, "transformer_2": _ANY},
    alias=None,
    fit=_fit,
    spell=spell,
)
