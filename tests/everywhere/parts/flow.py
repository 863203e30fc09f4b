"""Flow-matching transformers for images: StableDiffusion 3 and its kin."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.auraflow_transformer_2d import AuraFlowTransformer2DModel
from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.aura_flow.pipeline_aura_flow import AuraFlowPipeline
from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from ...runtime.pipes import NOTHING
from . import sd
from .case import HEADS, MASKS, NO_TEXT, Case, draw

SIZE = {"height": 64, "width": 64}


def shifting() -> FlowMatchEulerDiscreteScheduler:
    """As FLUX and its kin have it."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def sd3(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    nothing: dict[str, Any] = NOTHING | {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **nothing
    )
    new = draw(seed)
    given = {
        "latents": new(1, 4, 8, 8),
        "prompt_embeds": new(1, 5, 12),
        "negative_prompt_embeds": new(1, 5, 12),
        "pooled_prompt_embeds": new(1, 10),
        "negative_pooled_prompt_embeds": new(1, 10),
    }
    return Case(pipe, lambda: {**given, **SIZE, "guidance_scale": 5.0})


def qwen(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = QwenImagePipeline(transformer=transformer, scheduler=shifting(), **NO_TEXT)
    new = draw(seed)
    given = {
        "latents": new(1, 16, 16),
        "prompt_embeds": new(1, 5, 12),
        "negative_prompt_embeds": new(1, 6, 12),
    }
    return Case(pipe, lambda: {**given, **SIZE, "true_cfg_scale": 4.0})


def z_image(seed: int) -> Case:
    """Called with 1 − t / 1000, and with lists of images and prompts."""
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[4, 4, 8],
        axes_lens=[64, 16, 16],
    )
    pipe = ZImagePipeline(transformer=transformer, scheduler=shifting(), **NO_TEXT)
    new = draw(seed)
    latents, positive, negative = new(1, 4, 8, 8), new(5, 12), new(6, 12)
    return Case(
        pipe,
        lambda: {
            "latents": latents,
            "prompt_embeds": [positive],
            "negative_prompt_embeds": [negative],
            "guidance_scale": 3.0,
            **SIZE,
        },
    )


def lumina2(seed: int) -> Case:
    """Called with 1 − t / 1000."""
    torch.manual_seed(seed)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(64, 16, 16),
        cap_feat_dim=12,
    )
    pipe = Lumina2Pipeline(transformer=transformer, scheduler=shifting(), **NO_TEXT)
    new = draw(seed)
    given = {
        "latents": new(1, 4, 8, 8),
        "prompt_embeds": new(1, 5, 12),
        "negative_prompt_embeds": new(1, 5, 12),
        "prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
    }
    return Case(pipe, lambda: {**given, **SIZE, "guidance_scale": 4.0})


def aura(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pos_embed_max_size=16,
        **HEADS,
    )
    parts: dict[str, Any] = NO_TEXT | {"scheduler": FlowMatchEulerDiscreteScheduler()}
    pipe = AuraFlowPipeline(transformer=transformer, **parts)
    return Case(pipe, lambda: {**SIZE, **MASKS, **sd.prompt(seed)})
