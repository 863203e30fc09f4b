"""StableDiffusion XL in its forms: with an image, a mask, a ControlNet, a refiner."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import (
    StableDiffusionXLControlNetPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from ...runtime.pipes import NOTHING, tiny_unet
from . import sd
from .case import Case, draw, tiny_vae

SIZE = {"height": 16, "width": 16}
TEXT_TIME: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
    "use_linear_projection": True,
}
CHANGES: dict[str, Any] = TEXT_TIME | {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def parts(seed: int, **changes: Any) -> dict[str, Any]:
    """Of StableDiffusionXL: no text encoders, embeddings are given."""
    given: dict[str, Any] = NOTHING | {
        "vae": tiny_vae(seed, force_upcast=False),
        "unet": tiny_unet(seed, **CHANGES),
        "scheduler": EulerDiscreteScheduler(steps_offset=1),
        "add_watermarker": False,
    }
    return given | changes


def prompt(seed: int) -> dict[str, Any]:
    """Embeddings with guidance."""
    new = draw(seed + 3)
    pooled = {"pooled_prompt_embeds": new(1, 10), "negative_pooled_prompt_embeds": new(1, 10)}
    return sd.prompt(seed) | pooled


def text2img(seed: int) -> Case:
    latents = draw(seed + 1)(1, 4, 8, 8)
    pipe = StableDiffusionXLPipeline(**parts(seed))
    return Case(pipe, lambda: {"latents": latents.clone(), **SIZE, **prompt(seed)}, ("unet",))


def img2img(seed: int, **changes: Any) -> Case:
    pipe = StableDiffusionXLImg2ImgPipeline(**parts(seed, **changes))
    return Case(pipe, lambda: {"image": sd.picture(seed), **prompt(seed)}, ("unet",), sd.STARTS)


def inpaint(seed: int) -> Case:
    """With an ordinary UNet of four channels: the mask is kept by mixing latents."""
    pipe = StableDiffusionXLInpaintPipeline(**parts(seed))
    inputs = {"mask_image": sd.mask(), **SIZE}
    return Case(
        pipe, lambda: {"image": sd.picture(seed), **inputs, **prompt(seed)}, ("unet",), sd.STARTS
    )


def controlnet(seed: int) -> Case:
    torch.manual_seed(seed + 1)
    guide = ControlNetModel(
        block_out_channels=(8, 12),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
        **TEXT_TIME,
    ).eval()
    for weight in guide.controlnet_down_blocks.parameters():
        # They are zero until trained, and would control nothing.
        torch.nn.init.normal_(weight, std=0.1)
    pipe = StableDiffusionXLControlNetPipeline(**parts(seed, controlnet=guide))
    latents = draw(seed + 1)(1, 4, 8, 8)
    inputs = {"image": sd.picture(seed), **SIZE}
    return Case(pipe, lambda: {"latents": latents.clone(), **inputs, **prompt(seed)}, ("unet",))
