"""musubi-tuner's keys: kohya's, for Wan, Qwen-Image, Z-Image and others.

`lora_unet_blocks_0_self_attn_q` (Wan), `lora_unet_layers_0_attention_qkv` (Z-Image) and
`lora_unet_transformer_blocks_0_attn_to_q` (Qwen-Image, whose own code has the names of diffusers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import natives
from ..families import qwen, zimage
from ..kohya import dotted
from ..types import LayerName, LowRank
from .dialect import Dialect, alone
from .kohya_native import sign, split_native, with_encoders

_OWN = re.compile(r"(blocks|transformer_blocks|layers|noise_refiner|context_refiner)_\d+_")
_MODELS = (natives.wan.NATIVE, natives.zimage.NATIVE)


def _place(part: str, name: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
    if part != "unet":
        return None
    own = natives.place(name, factors, _MODELS)
    if own is not None:
        return own
    # Their own code names these as diffusers does.
    layer = LayerName("transformer", dotted(name))
    return {layer: factors} if any(f.owns(layer) for f in (qwen.FAMILY, zimage.FAMILY)) else None


DIALECT = Dialect(
    "musubi",
    "lora_unet_blocks_0_self_attn_q.lora_down.weight",
    sign(_OWN),
    split_native,
    alone(with_encoders(_place)),
)
