"""Z-Image."""

from __future__ import annotations

import re

from ..types import LayerName
from .evidence import Evidence
from .family import Family, Fit

_MODULES = re.compile(
    r"(layers|(noise|context)_refiner)\.\d+\."
    r"(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)"
    r"|all_x_embedder\.\d-\d|all_final_layer\.\d-\d\.(linear|adaLN_modulation\.1)"
    r"|cap_embedder\.1|t_embedder\.mlp\.[02]"
)
_ALIAS = re.compile(r"\bz-?image")


def _fit(evidence: Evidence) -> Fit:
    found = evidence.has(r"\.attention\.to_|\.feed_forward\.w|\.all_x_embedder|\.all_final_layer")
    return Fit.SURE if found else Fit.LIKELY


def _spell(name: LayerName) -> str:
    """The prefix that older releases of apps want too."""
    return f"diffusion_model.{name.module}"


FAMILY = Family(
    name="zimage",
    title="Z-Image",
    architecture="z-image/lora",
    denoiser="transformer",
    hub_id="Tongyi-MAI/Z-Image-Turbo",
    modules={"transformer": _MODULES},
    alias=_ALIAS,
    fit=_fit,
    spell=_spell,
)
