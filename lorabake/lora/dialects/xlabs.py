"""XLabs' keys for FLUX.1: `double_blocks.0.processor.qkv_lora1.down.weight` (1 image, 2 text)."""

from __future__ import annotations

import re

from ..natives.flux import NATIVE
from ..natives.native import cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, alone, first

_KEY = re.compile(
    r"(?:diffusion_model\.)?((?:double_blocks\.\d+\.processor\.(?:qkv|proj)_lora[12])"
    r"|(?:single_blocks\.\d+\.processor\.(?:qkv|proj)_lora))\.(down|up)\.weight"
)
_INNER = {
    "qkv_lora1": "img_attn.qkv", "proj_lora1": "img_attn.proj",
    "qkv_lora2": "txt_attn.qkv", "proj_lora2": "txt_attn.proj",
}  # fmt: skip


def _own(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def _split(key: str) -> Part | None:
    match = _KEY.fullmatch(key)
    return Part(match[1], "down" if match[2] == "down" else "up") if match else None


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    stack, number, _, inner = module.split(".")
    if stack == "double_blocks":
        return NATIVE.place(f"{stack}.{number}.{_INNER[inner]}", factors)
    stem = f"single_transformer_blocks.{number}."
    if inner == "proj_lora":
        return {LayerName("transformer", f"{stem}proj_out"): factors}
    # Unlike the model's own fused layer, this one has no part of the MLP.
    pieces = cut(factors, 3)
    names = (LayerName("transformer", f"{stem}attn.to_{letter}") for letter in "qkv")
    return None if pieces is None else dict(zip(names, pieces, strict=True))


DIALECT = Dialect(
    "xlabs", "double_blocks.0.processor.qkv_lora1.down.weight", first(_own), _split, alone(_place)
)
