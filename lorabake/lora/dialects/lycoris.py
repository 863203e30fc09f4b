"""LyCORIS' keys: kohya's, with diffusers names behind `lycoris_` (SimpleTuner)."""

from __future__ import annotations

from ..kohya import ENCODERS, dotted, encoder_layer, split
from ..names import layer_name
from ..types import LayerName, LowRank
from .dialect import Dialect, first
from .kohya_native import split_native


def _own(key: str) -> bool:
    part = split(key)
    return part is not None and part.prefix == "lycoris"


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    part, _, name = module.partition(" ")
    if part in ENCODERS:
        return {encoder_layer(part, name): factors}
    if part:
        return {LayerName(part, dotted(name)): factors}
    return {layer_name(dotted(name)): factors}


DIALECT = Dialect(
    "LyCORIS", "lycoris_transformer_blocks_0_attn_to_q.lokr_w1", first(_own), split_native, _place
)
