"""ComfyUI's keys: `diffusion_model.` before the path in the model's own code, or in diffusers.

ComfyUI, ai-toolkit, OneTrainer, diffusion-pipe and others write so, with the endings of PEFT or of
kohya. CLIP text encoders are `text_encoders.clip_l.transformer.…` beside it. With Wan 2.2's two
denoisers in one file ai-toolkit puts `transformer_1.` and `transformer_2.` before the path.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .. import natives
from ..names import canonical
from ..sgm import from_sgm
from ..suffixes import KOHYA, PEFT, Slot, cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, Place, first

_PREFIX = "diffusion_model."
_CLIP = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_ENCODER = re.compile(r"text_encoders\.(clip_[lg])\.transformer\.(.+)")
_DENOISERS = {"1": "transformer", "2": "transformer_2"}
_STAGE = re.compile(r"transformer_([12])\.")
_ENDINGS: dict[str, Slot] = {**KOHYA, **PEFT}


def _own(key: str) -> bool:
    return key.startswith(_PREFIX) and _split(key) is not None


def _split(key: str) -> Part | None:
    found = cut(key, _ENDINGS)
    if found is None or ".processor." in key:  # XLabs', which some files have behind the prefix.
        return None
    return Part(*found) if key.startswith(_PREFIX) or _ENCODER.match(key) else None


def _path(module: str) -> str:
    return _STAGE.sub("", module.removeprefix(_PREFIX))


def _beside(modules: Collection[str]) -> Place:
    own = natives.placing([_path(module) for module in modules])

    def place(module: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
        if encoder := _ENCODER.fullmatch(module):
            return {canonical(_CLIP[encoder[1]], encoder[2]): factors}
        path = module.removeprefix(_PREFIX)
        if stage := _STAGE.match(path):
            found = own(_path(module), factors)
            return found and {
                LayerName(_DENOISERS[stage[1]], n.module): f for n, f in found.items()
            }
        unet = from_sgm(path.replace(".", "_"))
        if unet is not None:
            return {LayerName("unet", unet): factors}
        return own(path, factors)

    return place


DIALECT = Dialect(
    "ComfyUI",
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
    first(_own),
    _split,
    _beside,
)
