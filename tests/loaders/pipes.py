"""Tiny pipelines of every family, built alike in each release of diffusers that has its classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from transformers import CLIPTextModelWithProjection

from .. import bases, tiny

lib: Any = diffusers

COMPONENTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2")


def _flow(kind: str, transformer: Any, **parts: Any) -> Any:
    """A pipeline of these parts; every other part is None, which no LoRA needs."""
    wanted = {"vae": None, "text_encoder": None, "tokenizer": None} | parts
    scheduler = lib.FlowMatchEulerDiscreteScheduler()
    return getattr(lib, kind)(scheduler=scheduler, transformer=transformer, **wanted)


def sd3() -> Any:
    transformer = lib.SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8, dual_attention_layers=(0,),
    )  # fmt: skip
    first, second = (bases.clip(CLIPTextModelWithProjection) for _ in range(2))
    return _flow(
        "StableDiffusion3Pipeline", transformer, text_encoder=first, text_encoder_2=second,
        tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux2() -> Any:
    transformer = lib.Flux2Transformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip
    return _flow("Flux2Pipeline", transformer)


def zimage() -> Any:
    transformer = lib.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=8, axes_dims=[4, 6, 6], axes_lens=[16, 16, 16],
    )  # fmt: skip
    return _flow("ZImagePipeline", transformer)


def qwen() -> Any:
    transformer = lib.QwenImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return _flow("QwenImagePipeline", transformer)


def _wan(**images: int) -> Any:
    return lib.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=8, ffn_dim=32, num_layers=2, rope_max_seq_len=32, **images,
    )  # fmt: skip


def wan() -> Any:
    """Wan 2.1."""
    return _flow("WanPipeline", _wan())


def wan_image() -> Any:
    """Wan 2.1 that starts from a picture, which has more layers."""
    transformer = _wan(image_dim=16, added_kv_proj_dim=24)
    return _flow("WanImageToVideoPipeline", transformer, image_encoder=None, image_processor=None)


def wan22() -> Any:
    """Wan 2.2 with its two denoisers."""
    return _flow("WanPipeline", _wan(), transformer_2=_wan(), boundary_ratio=0.9)


@dataclass(frozen=True)
class Case:
    """A bundle to load.

    Attributes:
        build: Makes the pipeline.
        since: The first release of diffusers that loads all of its layers.
        within: Pattern of the layers that it has.
    """

    build: Callable[[], Any]
    since: tuple[int, int] = (0, 38)
    within: str = ""


# diffusers 0.38 does not find conv_in, conv_out and the embeddings of time under kohya keys.
_BLOCKS = r"_blocks?\.|^text_encoder"

CASES = {
    "sd15": Case(lambda: tiny.sd15()[0], within=_BLOCKS),
    "sd15_all": Case(lambda: tiny.sd15()[0], since=(0, 39)),
    "sdxl": Case(lambda: tiny.sdxl()[0], within=_BLOCKS),
    "sdxl_all": Case(lambda: tiny.sdxl()[0], since=(0, 39)),
    "sd3": Case(sd3),
    "flux": Case(lambda: tiny.flux()[0]),
    "flux2": Case(flux2),
    "zimage": Case(zimage),
    "qwen": Case(qwen),
    "wan": Case(wan),
    "wan_image": Case(wan_image),
    "wan22": Case(wan22),
}


def layers(pipe: Any) -> dict[str, Any]:
    """Every linear and convolutional layer by the name that lorabake gives it, PEFT's included."""
    found: dict[str, Any] = {}
    for component in COMPONENTS:
        for path, module in (getattr(pipe, component, None) or torch.nn.Module()).named_modules():
            if isinstance(getattr(module, "base_layer", module), torch.nn.Linear | torch.nn.Conv2d):
                # transformers has named CLIP's layers with and without `text_model.`.
                flat = component.startswith("text_encoder") and path.startswith("encoder.")
                found[f"{component}.{'text_model.' if flat else ''}{path}"] = module
    return {name: module for name, module in found.items() if _outermost(name, found)}


def _outermost(name: str, found: dict[str, Any]) -> bool:
    """Not one of the layers that PEFT put inside another: the base layer and the two factors."""
    return not any(name.startswith(f"{stem}.") for stem in found if stem != name)
