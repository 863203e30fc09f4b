"""PixArt and Sana, whose pipelines have no callback or odd timesteps."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.pipelines.sana.pipeline_sana_sprint import SanaSprintPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_scm import SCMScheduler

from . import sd
from .case import MASKS, NO_TEXT, Case, draw

# Their negative prompt is "" by default, and must not be given beside its embeddings.
TOKENS: dict[str, Any] = MASKS | {"negative_prompt": None}
SANA_SIZE = {"height": 256, "width": 256, "use_resolution_binning": False}


def pixart(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
    )
    parts: dict[str, Any] = NO_TEXT | {"scheduler": DPMSolverMultistepScheduler()}
    pipe = PixArtSigmaPipeline(transformer=transformer, **parts)
    latents = draw(seed + 1)(1, 4, 8, 8)
    more = {"height": 64, "width": 64, "use_resolution_binning": False, **TOKENS}
    return Case(pipe, lambda: {"latents": latents, **more, **sd.prompt(seed)})


def tiny_sana(seed: int, **changes: Any) -> SanaTransformer2DModel:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 12,
        "sample_size": 8,
    }
    return SanaTransformer2DModel(**(config | changes))


def sana(seed: int) -> Case:
    flow = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    pipe = SanaPipeline(transformer=tiny_sana(seed), scheduler=flow, **NO_TEXT)
    latents = draw(seed + 1)(1, 4, 8, 8)
    return Case(pipe, lambda: {"latents": latents, **SANA_SIZE, **TOKENS, **sd.prompt(seed)})


def sana_sprint(seed: int) -> Case:
    """Called with sin(t) / (cos(t) + sin(t)), which its scheduler knows nothing of."""
    transformer = tiny_sana(seed, guidance_embeds=True, timestep_scale=0.001)
    parts: dict[str, Any] = NO_TEXT | {"scheduler": SCMScheduler(), "transformer": transformer}
    pipe = SanaSprintPipeline(**parts)
    new = draw(seed)
    given = {"prompt_embeds": new(1, 5, 12), "prompt_attention_mask": torch.ones(1, 5)}
    return Case(pipe, lambda: {**given, **SANA_SIZE})
