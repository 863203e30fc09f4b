"""kohya keys for FLUX: `lora_unet_double_blocks_0_img_attn_qkv`, named as in the model's own code.

FLUX.1 by sd-scripts, FLUX.2 and Kontext by musubi-tuner. Which of the two models a block is from
shows in the widths of its layers, or in its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .. import natives
from ..natives import flux, flux2
from ..types import LayerName, LowRank
from .dialect import Dialect, Place
from .kohya_native import placer, sign, split_native

_OWN = re.compile(
    r"(double|single)_blocks_\d+_|(time|vector|guidance)_in_(in|out)_layer$"
    r"|(double|single)_stream_modulation"
)

_MODELS = (flux.NATIVE, flux2.NATIVE)


def _beside(modules: Collection[str]) -> Place:
    of_denoiser = placer(*natives.likeliest(modules, _MODELS))

    def place(module: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
        found = of_denoiser(module, factors)
        if found and module.startswith("te3 "):  # T5, which is SD3's third encoder, FLUX.1's second
            return {LayerName("text_encoder_2", name.module): f for name, f in found.items()}
        return found

    return place


DIALECT = Dialect(
    "kohya for FLUX",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    sign(_OWN),
    split_native,
    _beside,
)
