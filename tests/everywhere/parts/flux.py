"""FLUX in its forms: with guidance in two calls a step, from an image; FLUX 2; Chroma."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.chroma.pipeline_chroma import ChromaPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

from ...runtime.pipes import NOTHING
from . import sd
from .case import HEADS, MASKS, NO_TEXT, Case, draw, tiny_vae
from .flow import SIZE, shifting


def tiny_flux(seed: int) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )


def prompt(seed: int) -> dict[str, Any]:
    new = draw(seed)
    given: dict[str, Any] = {"prompt_embeds": new(1, 5, 12), "pooled_prompt_embeds": new(1, 10)}
    return given | {"guidance_scale": 3.5}


def text2img(seed: int) -> Case:
    pipe = FluxPipeline(transformer=tiny_flux(seed), scheduler=shifting(), **NOTHING)
    latents = draw(seed + 1)(1, 16, 16)
    return Case(pipe, lambda: {"latents": latents, **SIZE, **prompt(seed)})


def true_cfg(seed: int) -> Case:
    """The transformer is called twice a step."""
    case = text2img(seed)
    new, inputs = draw(seed + 4), case.inputs
    negative: dict[str, Any] = {
        "negative_prompt_embeds": new(1, 5, 12),
        "negative_pooled_prompt_embeds": new(1, 10),
        "true_cfg_scale": 4.0,
    }
    return Case(case.pipe, lambda: inputs() | negative)


def img2img(seed: int) -> Case:
    vae = tiny_vae(seed, shift_factor=0.1)
    parts: dict[str, Any] = NOTHING | {"vae": vae, "transformer": tiny_flux(seed)}
    pipe = FluxImg2ImgPipeline(scheduler=shifting(), **parts)
    size = {"height": 16, "width": 16}
    return Case(
        pipe,
        lambda: {"image": sd.picture(seed), **size, **prompt(seed)},
        starts=sd.STARTS,
    )


def flux2(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
        **HEADS,
    )
    pipe = Flux2Pipeline(transformer=transformer, scheduler=shifting(), **NO_TEXT)
    return Case(pipe, lambda: {**SIZE, "prompt_embeds": draw(seed)(1, 5, 12)})


def chroma(seed: int) -> Case:
    torch.manual_seed(seed)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
        **HEADS,
    )
    parts: dict[str, Any] = NO_TEXT | {"scheduler": shifting()}
    pipe = ChromaPipeline(transformer=transformer, **parts)
    return Case(pipe, lambda: {**SIZE, **MASKS, **sd.prompt(seed)})
