"""kohya keys with the block names of Stability's code: `lora_unet_input_blocks_4_1_…` (SDXL)."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..kohya import COMPONENTS, dotted, split
from ..names import canonical
from ..sgm import from_sgm
from ..types import LayerName, LowRank
from .dialect import Dialect, Part

_HEADS = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed_\d|label_emb|out_2$)")


def _objection(keys: Collection[str]) -> str | None:
    parts = [part for part in map(split, keys) if part]
    if not parts:
        return "no key looks like lora_unet_….lora_down.weight"
    found = any(part.prefix == "unet" and _HEADS.match(part.name) for part in parts)
    return None if found else "no key has a block name such as lora_unet_input_blocks_…"


def _split(key: str) -> Part | None:
    part = split(key)
    return part and Part(f"{part.prefix} {part.name}", part.slot)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    prefix, _, name = module.partition(" ")
    path = from_sgm(name) if prefix == "unet" else dotted(name)
    return None if path is None else {canonical(COMPONENTS[prefix], path): factors}


DIALECT = Dialect(
    "kohya with sgm block names",
    "lora_unet_input_blocks_4_1_….lora_down.weight",
    _objection,
    _split,
    _place,
)
