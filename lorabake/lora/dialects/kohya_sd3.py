"""kohya keys for Stable Diffusion 3: `lora_unet_joint_blocks_0_x_block_attn_qkv`."""

from __future__ import annotations

import re

from ..natives import sd3
from .dialect import Dialect, alone
from .kohya_native import placer, sign, split_native

DIALECT = Dialect(
    "kohya for SD3",
    "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight",
    sign(re.compile(r"joint_blocks_\d+_|[xy]_embedder_(proj|mlp)|context_embedder$")),
    split_native,
    alone(placer(sd3.NATIVE)),
)
