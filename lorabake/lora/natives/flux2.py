"""FLUX.2 as in its authors' code; diffusers keeps its single blocks fused."""

from __future__ import annotations

import re
from fractions import Fraction

from .native import Native

_BLOCK, _SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."
_ATTENTION = (f"{_BLOCK}attn.to_q", f"{_BLOCK}attn.to_k", f"{_BLOCK}attn.to_v")
_ADDED = (f"{_BLOCK}attn.add_q_proj", f"{_BLOCK}attn.add_k_proj", f"{_BLOCK}attn.add_v_proj")
_TIME, _GUIDANCE = (
    "time_guidance_embed.timestep_embedder.linear_",
    "time_guidance_embed.guidance_embedder.linear_",
)

NATIVE = Native(
    family="flux2",
    modules={
        "double_blocks.{}.img_attn.qkv": _ATTENTION,
        "double_blocks.{}.img_attn.proj": (f"{_BLOCK}attn.to_out.0",),
        "double_blocks.{}.img_mlp.0": (f"{_BLOCK}ff.linear_in",),
        "double_blocks.{}.img_mlp.2": (f"{_BLOCK}ff.linear_out",),
        "double_blocks.{}.txt_attn.qkv": _ADDED,
        "double_blocks.{}.txt_attn.proj": (f"{_BLOCK}attn.to_add_out",),
        "double_blocks.{}.txt_mlp.0": (f"{_BLOCK}ff_context.linear_in",),
        "double_blocks.{}.txt_mlp.2": (f"{_BLOCK}ff_context.linear_out",),
        "single_blocks.{}.linear1": (f"{_SINGLE}attn.to_qkv_mlp_proj",),
        "single_blocks.{}.linear2": (f"{_SINGLE}attn.to_out",),
        "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
        "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
        "single_stream_modulation.lin": ("single_stream_modulation.linear",),
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": (f"{_TIME}1",),
        "time_in.out_layer": (f"{_TIME}2",),
        "guidance_in.in_layer": (f"{_GUIDANCE}1",),
        "guidance_in.out_layer": (f"{_GUIDANCE}2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    ratios={
        "double_blocks.{}.img_mlp.0": Fraction(6),
        "double_blocks.{}.img_mlp.2": Fraction(1, 3),
        "double_blocks.{}.txt_mlp.0": Fraction(6),
        "double_blocks.{}.txt_mlp.2": Fraction(1, 3),
        "single_blocks.{}.linear1": Fraction(9),
        "single_blocks.{}.linear2": Fraction(1, 4),
    },
    sign=re.compile(r"_stream_modulation"),
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
)
