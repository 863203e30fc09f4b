"""How the key of a tensor ends: the part of a module's update that it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Slot = Literal[
    "down", "up", "mid", "alpha",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "diff",
]  # fmt: skip
"""What a tensor is in its module; all but `down`, `up` and `alpha` are of other kinds than LoRA."""

_NAMED: dict[str, Slot] = {f".{slot}": slot for slot in get_args(Slot)[3:]}
"""Those that are written as they are called; the first three have names of their own."""

KOHYA: Mapping[str, Slot] = {
    **{".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid"},
    **_NAMED,
}
"""Endings of kohya's and LyCORIS' keys."""

PEFT: Mapping[str, Slot] = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".alpha": "alpha",
}  # fmt: skip
"""Endings of PEFT's keys."""


_DOTS = 3
"""In the longest ending."""


def cut(key: str, suffixes: Mapping[str, Slot]) -> tuple[str, Slot] | None:
    """`….to_q.lora_down.weight` → (`….to_q`, `down`); None if it ends in none of these."""
    start = len(key)
    for _ in range(_DOTS):
        start = key.rfind(".", 0, start)
        if start < 1:
            return None
        if (slot := suffixes.get(key[start:])) is not None:
            return key[:start], slot
    return None
