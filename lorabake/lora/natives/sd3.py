"""Stable Diffusion 3 and 3.5 as in Stability's code: joint blocks of image (x) and context."""

from __future__ import annotations

from .native import Native

_BLOCK = "transformer_blocks.{}."
_TIME, _TEXT = (
    "time_text_embed.timestep_embedder.linear_",
    "time_text_embed.text_embedder.linear_",
)

NATIVE = Native(
    family="sd3",
    modules={
        "joint_blocks.{}.x_block.attn.qkv": (
            f"{_BLOCK}attn.to_q", f"{_BLOCK}attn.to_k", f"{_BLOCK}attn.to_v",
        ),
        "joint_blocks.{}.x_block.attn.proj": (f"{_BLOCK}attn.to_out.0",),
        "joint_blocks.{}.x_block.attn2.qkv": (
            f"{_BLOCK}attn2.to_q", f"{_BLOCK}attn2.to_k", f"{_BLOCK}attn2.to_v",
        ),
        "joint_blocks.{}.x_block.attn2.proj": (f"{_BLOCK}attn2.to_out.0",),
        "joint_blocks.{}.x_block.mlp.fc1": (f"{_BLOCK}ff.net.0.proj",),
        "joint_blocks.{}.x_block.mlp.fc2": (f"{_BLOCK}ff.net.2",),
        "joint_blocks.{}.x_block.adaLN_modulation.1": (f"{_BLOCK}norm1.linear",),
        "joint_blocks.{}.context_block.attn.qkv": (
            f"{_BLOCK}attn.add_q_proj", f"{_BLOCK}attn.add_k_proj", f"{_BLOCK}attn.add_v_proj",
        ),
        "joint_blocks.{}.context_block.attn.proj": (f"{_BLOCK}attn.to_add_out",),
        "joint_blocks.{}.context_block.mlp.fc1": (f"{_BLOCK}ff_context.net.0.proj",),
        "joint_blocks.{}.context_block.mlp.fc2": (f"{_BLOCK}ff_context.net.2",),
        "joint_blocks.{}.context_block.adaLN_modulation.1": (f"{_BLOCK}norm1_context.linear",),
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": (f"{_TIME}1",),
        "t_embedder.mlp.2": (f"{_TIME}2",),
        "y_embedder.mlp.0": (f"{_TEXT}1",),
        "y_embedder.mlp.2": (f"{_TEXT}2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    # The last block's text is only read, so its modulation has but shift and scale.
    swapped=frozenset(
        {"final_layer.adaLN_modulation.1", "joint_blocks.{}.context_block.adaLN_modulation.1"}
    ),
)  # fmt: skip
