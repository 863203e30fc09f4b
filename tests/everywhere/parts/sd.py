"""StableDiffusion 1.5 in its forms, and AnimateDiff, which is built on it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import MotionAdapter
from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from ...runtime.pipes import tiny_unet
from .case import Case, draw, tiny_vae

STARTS = {0.3: 7, 0.7: 3}
UP = ("CrossAttnUpBlock2D", "UpBlock2D")


def parts(seed: int, **changes: Any) -> dict[str, Any]:
    """Of StableDiffusion: no text encoder, embeddings are given."""
    given: dict[str, Any] = {
        "vae": tiny_vae(seed),
        "text_encoder": None,
        "tokenizer": None,
        "unet": tiny_unet(seed),
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return given | changes


def prompt(seed: int) -> dict[str, Any]:
    """Embeddings with guidance."""
    new = draw(seed)
    return {
        "prompt_embeds": new(1, 5, 12),
        "negative_prompt_embeds": new(1, 5, 12),
        "guidance_scale": 5.0,
    }


def text2img(seed: int) -> Case:
    latents = draw(seed + 1)(1, 4, 8, 8)
    pipe = StableDiffusionPipeline(**parts(seed))
    return Case(pipe, lambda: {"latents": latents.clone(), **prompt(seed)}, ("unet",))


def picture(seed: int) -> torch.Tensor:
    """One of 16 × 16 with values in [0, 1]."""
    return draw(seed + 2)(1, 3, 16, 16).sigmoid()


def img2img(seed: int) -> Case:
    pipe = StableDiffusionImg2ImgPipeline(**parts(seed))
    return Case(pipe, lambda: {"image": picture(seed), **prompt(seed)}, ("unet",), STARTS)


def mask() -> torch.Tensor:
    """The right half is to be painted anew."""
    half = torch.zeros(1, 1, 16, 16)
    half[..., 8:] = 1
    return half


def inpaint(seed: int) -> Case:
    """With a UNet made for it, of nine channels."""
    pipe = StableDiffusionInpaintPipeline(**parts(seed, unet=tiny_unet(seed, in_channels=9)))
    size = {"height": 16, "width": 16, "mask_image": mask()}
    return Case(pipe, lambda: {"image": picture(seed), **size, **prompt(seed)}, ("unet",), STARTS)


def animatediff(seed: int) -> Case:
    torch.manual_seed(seed)
    motion: dict[str, Any] = {
        "block_out_channels": (8, 12),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 4,
        "use_motion_mid_block": False,
    }
    changes: dict[str, Any] = {
        "motion_adapter": MotionAdapter(**motion),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1, beta_schedule="linear"),
        "unet": tiny_unet(
            seed, mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=UP, attention_head_dim=2
        ),
    }
    given = parts(seed, **changes)
    for name in ("safety_checker", "requires_safety_checker"):
        del given[name]
    pipe = AnimateDiffPipeline(**given)
    latents = draw(seed + 1)(1, 4, 3, 8, 8)
    inputs = {"num_frames": 3, "height": 16, "width": 16, "decode_chunk_size": 3}
    return Case(pipe, lambda: {"latents": latents.clone(), **inputs, **prompt(seed)}, ("unet",))
