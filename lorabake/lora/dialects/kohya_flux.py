"""kohya keys for FLUX: `lora_unet_double_blocks_0_img_attn_qkv`, named as in the model's own code.

That code fuses query, key and value (and the first half of a single block's MLP) into one linear
layer. The fused update is split by output rows, which is exact: [B_q; B_k; B_v]·A gives three
layers that share A. Where B is block-diagonal, as in files converted from separate layers, each
layer gets back its own part of A.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import pairwise

import torch

from ..kohya import COMPONENTS, dotted, split
from ..names import canonical
from ..types import LayerName, LowRank
from .dialect import Dialect, Part

_WHOLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(.+)")


def _objection(keys: Collection[str]) -> str | None:
    parts = [part for part in map(split, keys) if part]
    if not parts:
        return "no key looks like lora_unet_….lora_down.weight"
    found = any(
        part.prefix == "unet" and (_BLOCK.match(part.name) or part.name in _WHOLE) for part in parts
    )
    return None if found else "no key has a block name such as lora_unet_double_blocks_…"


def _split(key: str) -> Part | None:
    part = split(key)
    return part and Part(f"{part.prefix} {part.name}", part.slot)


def _place(module: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
    prefix, _, name = module.partition(" ")
    if prefix != "unet":
        return {canonical(COMPONENTS[prefix], dotted(name)): factors}
    if name == "final_layer_adaLN_modulation_1":
        # Shift and scale are in the opposite order in diffusers.
        shift, scale = factors.up.chunk(2)
        swapped = LowRank(factors.down, torch.cat([scale, shift]), factors.scale)
        return {LayerName("transformer", _WHOLE[name]): swapped}
    if name in _WHOLE:
        return {LayerName("transformer", _WHOLE[name]): factors}
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    stem = "transformer_blocks" if match[1] == "double" else "single_transformer_blocks"
    modules = (_DOUBLE if match[1] == "double" else _SINGLE).get(match[3])
    pieces = _rows(factors, len(modules)) if modules else None
    if modules is None or pieces is None:
        return None
    names = (LayerName("transformer", f"{stem}.{match[2]}.{inner}") for inner in modules)
    return dict(zip(names, pieces, strict=True))


def _rows(factors: LowRank, count: int) -> list[LowRank] | None:
    """Cut ΔW by output rows: q, k and v are as wide as the input, what is left is the MLP's."""
    if count == 1:
        return [factors]
    width, rows = factors.down.shape[1], factors.up.shape[0]
    ends = [width, 2 * width, 3 * width, rows][:count]
    if factors.down.ndim != 2 or rows < ends[-1] or (count == 3 and rows != ends[-1]):
        return None
    if count == 4 and rows == 3 * width:
        return None
    ups = [factors.up[start:end] for start, end in pairwise([0, *ends])]
    own, rest = divmod(factors.rank, count)
    columns = [slice(i * own, (i + 1) * own) for i in range(count)]
    if rest == 0 and all(_only(up, piece) for up, piece in zip(ups, columns, strict=True)):
        return [
            LowRank(factors.down[piece], up[:, piece], factors.scale)
            for up, piece in zip(ups, columns, strict=True)
        ]
    return [LowRank(factors.down, up, factors.scale) for up in ups]


def _only(up: torch.Tensor, columns: slice) -> bool:
    """Whether B is zero outside these columns."""
    return not up[:, : columns.start].any() and not up[:, columns.stop :].any()


DIALECT = Dialect(
    "kohya for FLUX",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    _objection,
    _split,
    _place,
)
