"""Any other denoiser: its layers are known by their diffusers names alone.

Transformers come here by themselves; other denoisers where the user says so, because a UNet's layer
that no UNet family has is more likely a mistake.
"""

from __future__ import annotations

import re

from .evidence import Evidence
from .family import Family, Fit
from .transformer import spell

# Layers of language models are `model.layers…`; they are not for any image pipeline.
_ANY = re.compile(r"(?!(language_)?model\.).+")
_BLOCKS = r"^transformer(_2)?\.(\w*blocks|\w*layers)\.\d+\."


def _fit(evidence: Evidence) -> Fit:
    alone = evidence.components <= {"transformer", "transformer_2"}
    return Fit.POSSIBLE if alone and evidence.has(_BLOCKS) else Fit.NO


FAMILY = Family(
    name="generic",
    title="a model without a family of its own",
    architecture="diffusion-model/lora",
    denoiser="transformer",
    hub_id=None,
    modules={"transformer": _ANY, "transformer_2": _ANY, "unet": _ANY},
    alias=None,
    fit=_fit,
    spell=spell,
)
