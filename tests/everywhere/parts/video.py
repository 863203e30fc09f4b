"""Video transformers: Wan 2.1 and 2.2, LTX, CogVideoX."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from . import sd
from .case import HEADS, MASKS, NO_TEXT, Case, draw
from .flow import SIZE, shifting


def tiny_wan(seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=16,
    )


def wan(seed: int, **changes: Any) -> Case:
    """Wan 2.1."""
    flow = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    parts: dict[str, Any] = NO_TEXT | {"scheduler": flow, "transformer": tiny_wan(seed)}
    pipe = WanPipeline(**parts, **changes)
    latents = draw(seed + 1)(1, 4, 2, 8, 8)
    size = {"height": 64, "width": 64, "num_frames": 5}
    names = tuple(name for name in ("transformer", "transformer_2") if name in pipe.components)
    denoisers = tuple(name for name in names if getattr(pipe, name) is not None)
    return Case(pipe, lambda: {"latents": latents, **size, **sd.prompt(seed)}, denoisers)


def wan22(seed: int) -> Case:
    """Two transformers: the second takes over below nine tenths of the noise."""
    return wan(seed, transformer_2=tiny_wan(seed + 7), boundary_ratio=0.9)


def wan_by_token(seed: int) -> Case:
    """Wan 2.2 TI2V: called with a timestep for each token."""
    return wan(seed, expand_timesteps=True)


def ltx(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=12,
        **HEADS,
    )
    pipe = LTXPipeline(transformer=transformer, scheduler=shifting(), **NO_TEXT)
    size = {"height": 128, "width": 128, "num_frames": 9}
    return Case(pipe, lambda: {**size, **MASKS, **sd.prompt(seed)})


def cogvideox(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = CogVideoXTransformer3DModel(
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
        **HEADS,
    )
    parts: dict[str, Any] = NO_TEXT | {"scheduler": CogVideoXDDIMScheduler()}
    pipe = CogVideoXPipeline(transformer=transformer, **parts)
    size = {**SIZE, "num_frames": 5, "max_sequence_length": 5}
    return Case(pipe, lambda: {**size, **sd.prompt(seed)})
