"""kohya keys for FLUX: `lora_unet_double_blocks_0_img_attn_qkv`, named as in the model's own code.

FLUX.1 by sd-scripts, FLUX.2 and Kontext by musubi-tuner. Which of the two models a block is from
shows in the widths of its layers, or in its neighbours.
"""

from __future__ import annotations

import re

from .. import natives
from ..natives import flux, flux2
from .dialect import Dialect
from .kohya_native import placer, sign, split_native

_OWN = re.compile(
    r"(double|single)_blocks_\d+_|(time|vector|guidance)_in_(in|out)_layer$"
    r"|(double|single)_stream_modulation"
)

_MODELS = (flux.NATIVE, flux2.NATIVE)

DIALECT = Dialect(
    "kohya for FLUX",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    sign(_OWN),
    split_native,
    placer(*_MODELS),
    lambda modules: placer(*natives.likeliest(modules, _MODELS)),
)
