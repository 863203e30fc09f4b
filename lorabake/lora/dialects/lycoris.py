"""LyCORIS' keys: kohya's, with diffusers names behind `lycoris_` (SimpleTuner)."""

from __future__ import annotations

from ..kohya import dotted, split
from ..names import layer_name
from ..types import LayerName, LowRank
from .dialect import Dialect, alone, first
from .kohya_native import split_native, with_encoders


def _own(key: str) -> bool:
    part = split(key)
    return part is not None and part.prefix == "lycoris"


def _place(part: str, name: str, factors: LowRank) -> dict[LayerName, LowRank]:
    if part:
        return {LayerName(part, dotted(name)): factors}
    return {layer_name(dotted(name)): factors}


DIALECT = Dialect(
    "LyCORIS",
    "lycoris_transformer_blocks_0_attn_to_q.lokr_w1",
    first(_own),
    split_native,
    alone(with_encoders(_place)),
)
