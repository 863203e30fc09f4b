"""kohya keys with diffusers block names: SD 1.x and 2.x, other trainers' SDXL, text encoders."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..kohya import COMPONENTS, dotted, split
from ..names import canonical
from ..types import LayerName, LowRank
from .dialect import Dialect, Part

_HEADS = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in$|conv_out$|time_embedding|add_embedding)"
)


def _objection(keys: Collection[str]) -> str | None:
    parts = [part for part in map(split, keys) if part]
    if not parts:
        return "no key looks like lora_unet_….lora_down.weight"
    blocks = [part for part in parts if part.prefix == "unet"]
    if blocks and not any(_HEADS.match(part.name) for part in blocks):
        return "no key has a diffusers block name such as lora_unet_down_blocks_…"
    return None


def _split(key: str) -> Part | None:
    part = split(key)
    return part and Part(f"{part.prefix} {part.name}", part.slot)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    prefix, _, name = module.partition(" ")
    if prefix == "unet" and not _HEADS.match(name):
        return None
    return {canonical(COMPONENTS[prefix], dotted(name)): factors}


DIALECT = Dialect(
    "kohya with diffusers block names",
    "lora_unet_down_blocks_0_attentions_0_….lora_down.weight",
    _objection,
    _split,
    _place,
)
