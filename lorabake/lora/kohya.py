"""The kohya key: a module path with its dots turned into underscores, behind a prefix."""

from __future__ import annotations

import re
from typing import NamedTuple

from .names import canonical
from .suffixes import KOHYA, Slot, cut
from .types import LayerName

ENCODERS = {
    "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3",
}  # fmt: skip
"""Components by their short names."""

_STEM = re.compile(r"(lora|lycoris)_(?:(unet|transformer(?!_blocks)|te[123]?)_)?(.+)")

# Names of modules that have an underscore of their own, which no dot may replace.
_WHOLE = (
    # UNets
    "down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "conv_shortcut",
    "time_embedding", "add_embedding", "time_emb_proj", "linear_1", "linear_2", "proj_in",
    # Transformers
    "transformer_blocks", "single_transformer_blocks", "proj_out", "proj_mlp", "to_q", "to_k",
    "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context",
    "norm1_context", "x_embedder", "context_embedder", "pos_embed", "time_text_embed",
    "timestep_embedder", "guidance_embedder", "text_embedder", "norm_out", "linear_in",
    "linear_out", "to_qkv_mlp_proj", "time_guidance_embed", "double_stream_modulation_img",
    "double_stream_modulation_txt", "single_stream_modulation", "img_in", "txt_in", "img_mlp",
    "txt_mlp", "img_mod", "txt_mod", "noise_refiner", "context_refiner", "feed_forward",
    "adaLN_modulation", "t_embedder", "cap_embedder", "all_x_embedder", "all_final_layer",
    "condition_embedder", "time_embedder", "time_proj", "image_embedder", "patch_embedding",
    # Text encoders
    "text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
    "wi_0", "wi_1",
)  # fmt: skip
_WORD = re.compile(f"(?:{'|'.join(sorted(_WHOLE, key=len, reverse=True))}|[^_]+)(?=_|$)")


class Key(NamedTuple):
    """A kohya key in its parts, for example `lora`, `unet`, `mid_block_attentions_0_proj_in`, `up`.

    `part` is empty in keys without one, as LyCORIS writes them.
    """

    prefix: str
    part: str
    name: str
    slot: Slot


def split(key: str) -> Key | None:
    """Take a key apart; None if it is not a kohya key."""
    stem, slot = cut(key, KOHYA) or ("", "alpha")
    match = _STEM.fullmatch(stem)
    if match is None or "." in stem:
        return None
    return Key(match[1], match[2] or "", match[3], slot)


def encoder_layer(part: str, name: str) -> LayerName:
    """The layer of a text encoder, by the `part` and `name` of its key."""
    return canonical(ENCODERS[part], dotted(name))


def dotted(name: str) -> str:
    """`mid_block_attentions_0_proj_in` → `mid_block.attentions.0.proj_in`."""
    return ".".join(_WORD.findall(name))


def underscored(module: str) -> str:
    """`mid_block.attentions.0.proj_in` → `mid_block_attentions_0_proj_in`."""
    return module.replace(".", "_")
