"""kohya keys with diffusers block names: SD 1.x and 2.x, other trainers' SDXL, text encoders."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..kohya import ENCODERS, dotted, split
from ..types import LayerName, LowRank
from .dialect import Dialect, alone
from .kohya_native import split_native, with_encoders

_HEADS = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in$|conv_out$|(time|add)_embedding_linear)"
)


def _sign(keys: Collection[str]) -> str | None:
    parts = {key: part for key in sorted(keys) if (part := split(key))}
    for key, part in parts.items():
        if part[:2] == ("lora", "unet") and _HEADS.match(part.name):
            return key
    # Text encoders alone are named alike by all of kohya's styles.
    no_denoiser = parts and all(part.part in ENCODERS for part in parts.values())
    return next(iter(parts)) if no_denoiser else None


def _place(part: str, name: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    if part != "unet" or not _HEADS.match(name):
        return None
    return {LayerName("unet", dotted(name)): factors}


DIALECT = Dialect(
    "kohya with diffusers block names",
    "lora_unet_down_blocks_0_attentions_0_….lora_down.weight",
    _sign,
    split_native,
    alone(with_encoders(_place)),
)
