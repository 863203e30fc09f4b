"""kohya keys with the block names of Stability's code: `lora_unet_input_blocks_4_1_…` (SDXL)."""

from __future__ import annotations

import re

from ..sgm import from_sgm
from ..types import LayerName, LowRank
from .dialect import Dialect, alone
from .kohya_native import sign, split_native, with_encoders

_OWN = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed_\d|label_emb|out_2$)")


def _place(part: str, name: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    path = from_sgm(name) if part == "unet" else None
    return None if path is None else {LayerName("unet", path): factors}


DIALECT = Dialect(
    "kohya with sgm block names",
    "lora_unet_input_blocks_4_1_….lora_down.weight",
    sign(_OWN),
    split_native,
    alone(with_encoders(_place)),
)
