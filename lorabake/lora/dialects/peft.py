"""PEFT keys: `unet.….to_q.lora_A.weight`, also bare, `base_model.model.…` and `.default.`."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..names import layer_name
from ..types import LayerName, LowRank
from .dialect import Dialect, Part

_KEY = re.compile(r"(.+)\.(?:(lora_A|lora_B)(?:\.default)?\.weight|alpha)")


def _objection(keys: Collection[str]) -> str | None:
    found = any(".lora_A." in key or ".lora_B." in key for key in keys)
    return None if found else "no key has .lora_A. or .lora_B. in it"


def _split(key: str) -> Part | None:
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return Part(match[1], "alpha" if match[2] is None else "down" if match[2] == "lora_A" else "up")


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank]:
    return {layer_name(module): factors}


DIALECT = Dialect("PEFT", "unet.….attn1.to_q.lora_A.weight", _objection, _split, _place)
