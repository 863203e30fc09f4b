"""Z-Image as in its authors' code, with query, key and value fused."""

from __future__ import annotations

import re

from .native import Native

SIGN = re.compile(
    r"(layers|(noise|context)_refiner)[._]\d+[._](attention[._]|feed_forward[._]w)|cap_embedder[._]"
)
"""Modules of Z-Image by either kind of names."""

_STACKS = ("layers", "noise_refiner", "context_refiner")

NATIVE = Native(
    family="zimage",
    modules={
        f"{stack}.{{}}.{theirs}": tuple(f"{stack}.{{}}.{module}" for module in ours)
        for stack in _STACKS
        for theirs, ours in {
            "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
            "attention.out": ("attention.to_out.0",),
            "feed_forward.w1": ("feed_forward.w1",),
            "feed_forward.w2": ("feed_forward.w2",),
            "feed_forward.w3": ("feed_forward.w3",),
        }.items()
    }
    | {
        "layers.{}.adaLN_modulation.0": ("layers.{}.adaLN_modulation.0",),
        "noise_refiner.{}.adaLN_modulation.0": ("noise_refiner.{}.adaLN_modulation.0",),
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
        "cap_embedder.1": ("cap_embedder.1",),
        "t_embedder.mlp.0": ("t_embedder.mlp.0",),
        "t_embedder.mlp.2": ("t_embedder.mlp.2",),
    },
    sign=SIGN,
)
