"""Tiny guided pipelines, real encoders, and R computed anew in the plainest way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from lorabake.runtime.guidance import Guidance, Reference
from lorabake.runtime.guide import Guide

from .. import bases
from .pipes import draw, quiet

lib_vision: Any = transformers
SIZE = {"clip": 6, "dino": 8}


class Encoder(nn.Module):
    """A vision model of transformers behind a resize and its normalisation."""

    def __init__(self, model: Any, embed: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self._embed = model, embed

    def forward(self, images: Tensor) -> Tensor:
        small = functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)
        return self._embed(self.model(pixel_values=((small - 0.4) / 0.3).to(self.model.dtype)))


def encoders(seed: int = 0) -> dict[str, Encoder]:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        # Larger than usual, so that untrained encoders tell images apart.
        "initializer_range": 0.5,
    }  # fmt: skip
    clip = lib_vision.CLIPVisionConfig(
        **shape, projection_dim=SIZE["clip"], initializer_factor=20.0
    )
    dino = lib_vision.ViTConfig(**shape)
    return {
        "clip": Encoder(
            lib_vision.CLIPVisionModelWithProjection(clip).eval(), lambda out: out.image_embeds
        ),
        "dino": Encoder(
            lib_vision.ViTModel(dino, add_pooling_layer=False).eval(),
            lambda out: out.last_hidden_state[:, 0],
        ),
    }


def guidance(**changes: Any) -> Guidance:
    def vector(name: str, seed: int) -> tuple[float, ...]:
        return tuple(functional.normalize(draw(SIZE[name], seed=seed), dim=0).tolist())

    references = tuple(
        Reference(vector("clip", seed), vector("dino", seed + 1), "a cat", seed)
        for seed in (20, 30)
    )
    given: dict[str, Any] = {"references": references, "clip": "some/clip", "dino": "some/dino"}
    given |= {"weights": (1.0, 0.7, 1.4)}
    return Guidance(**(given | changes))


def pipeline(family: str, dtype: torch.dtype = torch.float32, scheduler: Any = None) -> Any:
    pipe = bases.FAMILIES[family]().to(dtype)
    if scheduler is not None:
        pipe.scheduler = scheduler
    return quiet(pipe)


def guide(pipe: Any, of: Guidance | None = None, **parts: Any) -> Guide:
    """With its encoders in the pipeline's dtype."""
    names = [n for n in ("unet", "transformer") if getattr(pipe, n, None) is not None]
    roots = {n: getattr(getattr(pipe, n), "_orig_mod", getattr(pipe, n)) for n in names}
    if "encoders" not in parts:
        dtype = next(roots[names[0]].parameters()).dtype
        parts["encoders"] = {name: one.to(dtype) for name, one in encoders().items()}
    parts = {"decoder": None, "where": "a.safetensors"} | parts
    return Guide(pipe, roots, of or guidance(), **parts)


def latents(pipe: Any, count: int, seed: int = 5) -> Tensor:
    packed = hasattr(pipe, "_unpack_latents")
    made = torch.cat([draw(1, *((16, 16) if packed else (4, 8, 8)), seed=seed + i)
                      for i in range(count)])  # fmt: skip
    model = pipe.transformer if getattr(pipe, "transformer", None) is not None else pipe.unet
    return made.to(model.dtype)


def conditions(pipe: Any, count: int, seed: int = 50) -> dict[str, Tensor]:
    """Embeddings in the place of prompts, different for each image."""
    kind = type(pipe).__name__
    width, pooled = {
        "StableDiffusionPipeline": (24, 0), "StableDiffusionXLPipeline": (48, 24),
        "StableDiffusion3Pipeline": (48, 48), "FluxPipeline": (16, 24),
    }[kind]  # fmt: skip
    given = {"prompt_embeds": (5, width), "negative_prompt_embeds": (5, width)}
    if pooled:
        given |= {"pooled_prompt_embeds": (pooled,), "negative_pooled_prompt_embeds": (pooled,)}
    dtype = latents(pipe, 1).dtype
    return {
        name: torch.cat([draw(1, *shape, seed=seed + 7 * i + j) for i in range(count)]).to(dtype)
        for j, (name, shape) in enumerate(given.items())
    }


def run(pipe: Any, steps: int = 2, count: int = 1, **more: Any) -> list[Tensor]:
    """The latents after each step."""
    seen: list[Tensor] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        return {}

    given: dict[str, Any] = {
        "latents": latents(pipe, count), "height": 16, "width": 16, "guidance_scale": 4.0,
        "num_inference_steps": steps, "output_type": "latent", "callback_on_step_end": keep,
        **conditions(pipe, count),
    }  # fmt: skip
    if type(pipe).__name__ == "FluxPipeline":  # guides in two calls
        given["true_cfg_scale"] = 4.0
    pipe(**(given | more))
    return seen


def naive_score(images: Tensor, models: dict[str, Encoder], of: Guidance) -> Tensor:
    """R of each image, one by one."""
    values: list[Tensor] = []
    for image in images:
        clip, dino = (models[name](image[None])[0] for name in ("clip", "dino"))

        def similar(a: Tensor, b: tuple[float, ...]) -> Tensor:
            other = torch.tensor(b, dtype=a.dtype)
            return (a @ other) / (a @ a).sqrt() / (other @ other).sqrt()

        content, style = of.references
        first, second, third = of.weights
        total = first * similar(clip, content.clip) + second * similar(clip, style.clip)
        values.append(1 - (total + third * similar(dino, style.dino)) / 3)
    return torch.stack(values)
