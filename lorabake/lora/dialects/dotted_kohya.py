"""kohya's endings behind diffusers paths: `transformer_blocks.0.attn.to_q.lora_down.weight`.

So are Qwen-Image's Lightning LoRAs and later ones of OneTrainer.
"""

from __future__ import annotations

from .. import natives
from ..names import bare, layer_name
from ..suffixes import KOHYA, cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, first


def _own(key: str) -> bool:
    found = _split(key)
    return found is not None and found.slot != "alpha"


def _split(key: str) -> Part | None:
    found = cut(key, KOHYA)
    foreign = key.startswith(("diffusion_model.", "text_encoders."))
    return None if found is None or "." not in found[0] or foreign else Part(*found)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    if natives.known(bare(module)):
        return natives.place(bare(module), factors)
    return {layer_name(module): factors}


DIALECT = Dialect(
    "kohya with paths",
    "transformer_blocks.0.attn.to_q.lora_down.weight",
    first(_own),
    _split,
    _place,
)
