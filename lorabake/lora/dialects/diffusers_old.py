"""The first diffusers keys: `….attn1.processor.to_q_lora.down.weight`, in text encoders as well.

Layers without an attention processor were written in the next style already, within one file.
"""

from __future__ import annotations

import re

from ..names import layer_name
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, alone, first

OWN = re.compile(r"\.to_(?:q|k|v|out)_lora\.(?:down|up)\.weight$")
"""Ends of keys that no other style has."""

_INFIX = r"(?:_lora|\.lora|\.lora_linear_layer)"
_KEY = re.compile(rf"(.+?)(?:{_INFIX}\.(?:(down|up)\.weight)|{_INFIX}?\.(alpha))")
_UNET = {"to_out": "to_out.0"}
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def _split(key: str) -> Part | None:
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    slot = "alpha" if match[3] else "down" if match[2] == "down" else "up"
    *stem, last = match[1].replace(".processor.", ".").split(".")
    names = _TEXT if stem[-1:] == ["self_attn"] else _UNET
    return Part(".".join([*stem, names.get(last, last)]), slot)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank]:
    return {layer_name(module): factors}


DIALECT = Dialect(
    "diffusers (old)",
    "unet.….attn1.processor.to_q_lora.down.weight",
    first(lambda key: OWN.search(key) is not None),
    _split,
    alone(_place),
)
