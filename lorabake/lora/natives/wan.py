"""Wan 2.1 and 2.2 as in their authors' code."""

from __future__ import annotations

from .native import Native

_BLOCK, _EMBEDDER = "blocks.{}.", "condition_embedder."
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}

NATIVE = Native(
    family="wan",
    modules={
        f"blocks.{{}}.{theirs}.{inner}": (f"{_BLOCK}{ours}.{name}",)
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for inner, name in _ATTENTION.items()
    }
    | {
        "blocks.{}.cross_attn.k_img": (f"{_BLOCK}attn2.add_k_proj",),
        "blocks.{}.cross_attn.v_img": (f"{_BLOCK}attn2.add_v_proj",),
        "blocks.{}.ffn.0": (f"{_BLOCK}ffn.net.0.proj",),
        "blocks.{}.ffn.2": (f"{_BLOCK}ffn.net.2",),
        "time_embedding.0": (f"{_EMBEDDER}time_embedder.linear_1",),
        "time_embedding.2": (f"{_EMBEDDER}time_embedder.linear_2",),
        "time_projection.1": (f"{_EMBEDDER}time_proj",),
        "text_embedding.0": (f"{_EMBEDDER}text_embedder.linear_1",),
        "text_embedding.2": (f"{_EMBEDDER}text_embedder.linear_2",),
        "img_emb.proj.1": (f"{_EMBEDDER}image_embedder.ff.net.0.proj",),
        "img_emb.proj.3": (f"{_EMBEDDER}image_embedder.ff.net.2",),
        "head.head": ("proj_out",),
    },
)
