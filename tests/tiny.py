"""Real diffusers pipelines with tiny random weights, as a user without lorabake has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from . import bases

Inputs = dict[str, Any]

# Every part that no test needs is None, which the signatures do not provide for.
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
lib: Any = diffusers


def _ddim() -> Any:
    return lib.DDIMScheduler(steps_offset=1, clip_sample=False)


def _text(kind: Any = CLIPTextModel) -> Any:
    return bases.clip(kind, 99)


def sd15() -> tuple[Any, Inputs]:
    """A pipeline, and inputs for its UNet."""
    torch.manual_seed(0)
    unet = bases.sd15_unet(2)
    pipe = lib.StableDiffusionPipeline(
        vae=None, text_encoder=_text(), tokenizer=None, unet=unet, scheduler=_ddim(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(1, 5, 24),
    }


def save_sd15(folder: Path) -> Path:
    """Write a whole text-to-image pipeline, 16 × 16 pixels, as a model folder."""
    pipe, _ = sd15()
    pipe.register_modules(vae=bases.vae(4), tokenizer=bases.clip_tokenizer())
    pipe.save_pretrained(folder)
    return folder


def sdxl() -> tuple[Any, Inputs]:
    """A pipeline whose UNet has SDXL's levels, and inputs for it."""
    torch.manual_seed(0)
    unet = bases.sdxl_unet()
    pipe = lib.StableDiffusionXLPipeline(
        vae=None, text_encoder=_text(), text_encoder_2=_text(CLIPTextModelWithProjection),
        tokenizer=None, tokenizer_2=None, unet=unet, scheduler=_ddim(),
        add_watermarker=False,
    )  # fmt: skip
    return pipe, {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(1, 5, 48),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 24),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        },
    }


def flux() -> tuple[Any, Inputs]:
    """A pipeline with a FLUX transformer, and inputs for it."""
    torch.manual_seed(0)
    transformer = lib.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4), guidance_embeds=True,
    ).eval()  # fmt: skip
    pipe = lib.FluxPipeline(
        scheduler=lib.FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=_text(),
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    return pipe, {
        "hidden_states": torch.randn(1, 6, 4),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def shapes(pipe: Any) -> dict[str, tuple[int, ...]]:
    """Weight shape of every linear and convolutional layer, by path with its component."""
    return {
        name: tuple(module.weight.shape)
        for name, module in layers(pipe).items()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def layers(pipe: Any) -> dict[str, Any]:
    """Every module of the models, by path with its component as in `shapes`."""
    return {
        f"{component}.{_lasting(component, name)}": module
        for component in COMPONENTS
        for name, module in (getattr(pipe, component, None) or torch.nn.Module()).named_modules()
    }


def output(pipe: Any, inputs: Inputs) -> Tensor:
    """The denoiser's output in float64."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    model.double()
    with torch.no_grad():
        return model(**_double(inputs)).sample


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _lasting(component: str, name: str) -> str:
    """transformers has named CLIP's layers with and without `text_model.`; LoRA files have it."""
    clip = component.startswith("text_encoder") and name.startswith("encoder.")
    return f"text_model.{name}" if clip else name
