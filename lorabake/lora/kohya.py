"""The kohya key: a module path with its dots turned into underscores, behind a component prefix."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Slot = Literal["down", "up", "alpha"]

COMPONENTS = {
    "unet": "unet", "transformer": "transformer", "te": "text_encoder", "te1": "text_encoder",
    "te2": "text_encoder_2", "te3": "text_encoder_3",
}  # fmt: skip

_PREFIX = "|".join(COMPONENTS)
_KEY = re.compile(rf"lora_({_PREFIX})_([^.]+)\.(lora_down\.weight|lora_up\.weight|alpha)")
_SLOTS: dict[str, Slot] = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}

# Names of modules that have an underscore of their own, which no dot may replace.
_WHOLE = (
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks",
    "conv_in", "conv_out", "conv_shortcut", "time_embedding", "add_embedding", "time_emb_proj",
    "linear_1", "linear_2", "proj_in", "proj_out", "proj_mlp", "to_q", "to_k", "to_v", "to_out",
    "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context",
    "x_embedder", "context_embedder", "pos_embed", "time_text_embed", "timestep_embedder",
    "guidance_embedder", "text_embedder", "norm_out", "text_model", "text_projection",
    "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
_WORD = re.compile(f"(?:{'|'.join(sorted(_WHOLE, key=len, reverse=True))}|[^_]+)(?=_|$)")


class Key(NamedTuple):
    """A kohya key in its parts, for example `unet`, `mid_block_attentions_0_proj_in`, `up`."""

    prefix: str
    name: str
    slot: Slot


def split(key: str) -> Key | None:
    """Take a key apart; None if it is not a kohya key of a plain LoRA."""
    match = _KEY.fullmatch(key)
    return Key(match[1], match[2], _SLOTS[match[3]]) if match else None


def dotted(name: str) -> str:
    """`mid_block_attentions_0_proj_in` → `mid_block.attentions.0.proj_in`."""
    return ".".join(_WORD.findall(name))


def underscored(module: str) -> str:
    """`mid_block.attentions.0.proj_in` → `mid_block_attentions_0_proj_in`."""
    return module.replace(".", "_")
