"""OneTrainer's keys for transformers: kohya's, with diffusers names behind `lora_transformer_`."""

from __future__ import annotations

from ..kohya import dotted, split
from ..types import LayerName, LowRank
from .dialect import Dialect, alone, first
from .kohya_native import split_native, with_encoders


def _own(key: str) -> bool:
    part = split(key)
    return part is not None and part[:2] == ("lora", "transformer")


def _place(part: str, name: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    return {LayerName("transformer", dotted(name)): factors} if part == "transformer" else None


DIALECT = Dialect(
    "OneTrainer",
    "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
    first(_own),
    split_native,
    alone(with_encoders(_place)),
)
