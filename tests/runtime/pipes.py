"""Real diffusers pipelines around tiny random denoisers; they render latents from embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(clip_sample=False, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(steps_offset=1),
    "heun": lambda: HeunDiscreteScheduler(steps_offset=1),
}


NOTHING: dict[str, Any] = dict.fromkeys(
    ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(seed: int = 3) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def tiny_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 12),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | changes)).eval()


def one_level_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """The least one that has layers of all kinds."""
    config: dict[str, Any] = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    return tiny_unet(seed, **(config | changes))


def sd(scheduler: str = "ddim", **parts: Any) -> StableDiffusionPipeline:
    given: dict[str, Any] = {
        "vae": None,
        "text_encoder": None,
        "tokenizer": None,
        "unet": parts.get("unet") or tiny_unet(),
        "scheduler": SCHEDULERS[scheduler](),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(StableDiffusionPipeline(**(given | parts)))


def sdxl(**changes: Any) -> StableDiffusionXLPipeline:
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
        use_linear_projection=True,
        transformer_layers_per_block=2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **changes,
    )
    parts: dict[str, Any] = {"unet": unet, "scheduler": SCHEDULERS["euler"]()}
    return quiet(StableDiffusionXLPipeline(**NOTHING, **parts, add_watermarker=False))


def flux(blocks: int = 2) -> FluxPipeline:
    """With so many blocks of each kind."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=blocks,
        num_single_layers=blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 4, 8),
    )
    parts: dict[str, Any] = {
        "transformer": transformer.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }
    return quiet(FluxPipeline(**NOTHING, **parts))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def render(
    pipe: Any, steps: int, *, cfg: bool = True, batch: int = 1, seed: int = 0, **more: Any
) -> Tensor:
    """Latents of a run with random embeddings in the place of a prompt."""
    inputs: dict[str, Any] = {"prompt_embeds": draw(batch, 5, 12, seed=seed + 1)}
    kind = type(pipe)
    if kind is FluxPipeline:
        # Packed latents: 2 × 2 patches of one channel.
        inputs |= {"latents": draw(batch, 16, 4, seed=seed), "height": 64, "width": 64}
        inputs |= {"pooled_prompt_embeds": draw(batch, 10, seed=seed + 3)}
    else:
        inputs |= {
            "latents": draw(batch, 4, 8, 8, seed=seed),
            "guidance_scale": 5.0 if cfg else 1.0,
        }
        if cfg:
            inputs["negative_prompt_embeds"] = draw(batch, 5, 12, seed=seed + 2)
    if kind is StableDiffusionXLPipeline:
        inputs |= {
            "pooled_prompt_embeds": draw(batch, 10, seed=seed + 3),
            "height": 64,
            "width": 64,
        }
        if cfg:
            inputs["negative_pooled_prompt_embeds"] = draw(batch, 10, seed=seed + 4)
    return pipe(num_inference_steps=steps, output_type="latent", **inputs, **more).images
