"""kohya's endings behind diffusers paths: `transformer_blocks.0.attn.to_q.lora_down.weight`.

So are Qwen-Image's Lightning LoRAs and later ones of OneTrainer.
"""

from __future__ import annotations

from .. import kohya, natives
from ..suffixes import KOHYA, cut
from .dialect import Dialect, Part, first


def _own(key: str) -> bool:
    found = _split(key)
    return found is not None and found.slot != "alpha" and "." in found.module


def _split(key: str) -> Part | None:
    found = cut(key, KOHYA)
    foreign = key.startswith(("diffusion_model.", "text_encoders."))
    return None if found is None or foreign or kohya.split(key) else Part(*found)


DIALECT = Dialect(
    "kohya with paths",
    "transformer_blocks.0.attn.to_q.lora_down.weight",
    first(_own),
    _split,
    natives.placing,
)
