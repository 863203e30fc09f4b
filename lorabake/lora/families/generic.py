"""Any other denoiser: its layers are known by their names alone."""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import spell

# Layers of language models are `model.layers…`; they are not for any image pipeline.
_ANY = re.compile(r"(?!(language_)?model\.).+")
_BLOCKS = re.compile(r"(transformer(_2)?|unet)\.([\w.]*blocks|layers)\.\d+\.")


def _fit(evidence: Evidence) -> Fit:
    return Fit.POSSIBLE if evidence.has(_BLOCKS.pattern) else Fit.NO


FAMILY = Family(
    name="generic",
    title="a model without a family of its own",
    architecture="diffusion-model/lora",
    denoiser="transformer",
    hub_id=None,
    modules={"transformer": _ANY, "transformer_2": _ANY},
    alias=None,
    fit=_fit,
    spell=spell,
)
