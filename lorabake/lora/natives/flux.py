"""FLUX.1 as in its authors' code, which fuses query, key, value and half of the MLP."""

from __future__ import annotations

import re
from fractions import Fraction

from .native import Native

_BLOCK, _SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_ATTENTION = (f"{_BLOCK}attn.to_q", f"{_BLOCK}attn.to_k", f"{_BLOCK}attn.to_v")
_ADDED = (f"{_BLOCK}attn.add_q_proj", f"{_BLOCK}attn.add_k_proj", f"{_BLOCK}attn.add_v_proj")
_QKV = (f"{_SINGLE}attn.to_q", f"{_SINGLE}attn.to_k", f"{_SINGLE}attn.to_v")

NATIVE = Native(
    family="flux",
    modules={
        "double_blocks.{}.img_attn.qkv": _ATTENTION,
        "double_blocks.{}.img_attn.proj": (f"{_BLOCK}attn.to_out.0",),
        "double_blocks.{}.img_mlp.0": (f"{_BLOCK}ff.net.0.proj",),
        "double_blocks.{}.img_mlp.2": (f"{_BLOCK}ff.net.2",),
        "double_blocks.{}.img_mod.lin": (f"{_BLOCK}norm1.linear",),
        "double_blocks.{}.txt_attn.qkv": _ADDED,
        "double_blocks.{}.txt_attn.proj": (f"{_BLOCK}attn.to_add_out",),
        "double_blocks.{}.txt_mlp.0": (f"{_BLOCK}ff_context.net.0.proj",),
        "double_blocks.{}.txt_mlp.2": (f"{_BLOCK}ff_context.net.2",),
        "double_blocks.{}.txt_mod.lin": (f"{_BLOCK}norm1_context.linear",),
        "single_blocks.{}.linear1": (*_QKV, f"{_SINGLE}proj_mlp"),
        "single_blocks.{}.linear2": (f"{_SINGLE}proj_out",),
        "single_blocks.{}.modulation.lin": (f"{_SINGLE}norm.linear",),
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
        "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
        "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
        "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    ratios={
        "double_blocks.{}.img_mlp.0": Fraction(4),
        "double_blocks.{}.img_mlp.2": Fraction(1, 4),
        "double_blocks.{}.txt_mlp.0": Fraction(4),
        "double_blocks.{}.txt_mlp.2": Fraction(1, 4),
        "single_blocks.{}.linear1": Fraction(7),
        "single_blocks.{}.linear2": Fraction(1, 5),
    },
    sign=re.compile(r"(img|txt)_mod[._]|blocks[._]\d+[._]modulation|vector_in"),
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
)
