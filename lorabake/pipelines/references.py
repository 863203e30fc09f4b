"""Reference latents of a LoRA: sampled from the LoRA itself, or encoded from its images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import BaseModelError, ImageError
from .blame import blame


def sample(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    prompt: str,
    *,
    count: int,
    pixels: int,
    steps: int,
    guidance: float | None,
    seed: int,
    progress: Callable[[], None] = lambda: None,
    output: Literal["latent", "pt"] = "latent",
) -> Tensor:
    """Latents of `count` images that the pipeline paints of a prompt, as its denoiser sees them.

    Args:
        pipe: A text-to-image pipeline, with one LoRA at work in it.
        prompt: The LoRA's own, with its trigger word.
        count: How many images.
        pixels: Height and width.
        steps: Denoising steps.
        guidance: Classifier-free guidance; None is the pipeline's own.
        seed: Of the first image; the next has the next one.
        progress: Called after each image.
        output: `pt` for the images themselves instead of their latents.

    Returns:
        Float32 on the CPU, `[count, …]`; images are `[count, 3, pixels, pixels]` in [0, 1].

    Raises:
        BaseModelError: The pipeline cannot be called like this, or paints NaN.
    """
    found: list[Tensor] = []
    options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    where = str(getattr(pipe, "name_or_path", None) or "")
    with (
        torch.no_grad(),
        blame(
            "cannot paint the references",
            where=where,
            advice="Give another resolution, or use another model",
        ),
    ):
        for i in range(count):
            generator = torch.Generator("cpu").manual_seed(seed + i)
            images = pipe(
                prompt, height=pixels, width=pixels, num_inference_steps=steps,
                generator=generator, output_type=output, **options,
            ).images  # fmt: skip
            found.append(images.float().cpu())
            progress()
    if not all(latents.isfinite().all() for latents in found):
        raise BaseModelError(
            "paints NaN or Inf with this LoRA",
            where=where,
            advice="Check the model's scheduler and the LoRA's strength, or use precision=float32",
        )
    return torch.cat(found)


def encode(pipe: Any, images: Tensor, seed: int) -> Tensor:  # noqa: ANN401 - any diffusers pipeline
    """Latents of images, as the pipeline's denoiser leaves them (`output_type="latent"`).

    The inverse of what the pipeline's call does between its last step and `vae.decode`.

    Args:
        pipe: Of Stable Diffusion 1.x, SDXL, Stable Diffusion 3 or FLUX.
        images: `[n, 3, height, width]` in [-1, 1].
        seed: Of the draws from the VAE's posterior, made on the CPU, image by image.

    Returns:
        Float32 `[n, channels, height / f, width / f]`, where f is the VAE's reduction, or
        `[n, tokens, 4 · channels]` for FLUX, on the CPU.

    Raises:
        ImageError: The model does not paint images of this size.
        BaseModelError: The VAE is missing or damaged, or its dtype overflows.
    """
    where = str(getattr(pipe, "name_or_path", None) or "")
    with blame(
        f"the VAE of {type(pipe).__name__} cannot encode images",
        where=where,
        advice="Use a model with the VAE that its pipeline was made for",
    ):
        _check_size(pipe, images)
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad(), _precise(pipe.vae) as vae:
            latents = torch.cat([_sample(vae, image[None], generator) for image in images])
        latents = _normalised(pipe, latents)
        if not latents.isfinite().all():
            raise BaseModelError(
                f"its VAE gives NaN or Inf in {pipe.vae.dtype}",
                where=where,
                advice="Load the model in bfloat16 or float32",
            )
        if hasattr(pipe, "_pack_latents"):
            return pipe._pack_latents(latents, *latents.shape)
        return latents


def _check_size(pipe: Any, images: Tensor) -> None:  # noqa: ANN401 - as above
    packed = 2 if hasattr(pipe, "_pack_latents") else getattr(pipe, "patch_size", 1)
    step = pipe.vae_scale_factor * packed
    height, width = images.shape[-2:]
    if height % step or width % step:
        raise ImageError(
            f"{type(pipe).__name__} does not paint images of {width} × {height} pixels",
            advice=f"Give multiples of {step}",
        )


@contextlib.contextmanager
def _precise(vae: Any) -> Generator[Any]:  # noqa: ANN401 - any VAE
    """The VAE in float32 where its makers say that half precision overflows."""
    before = vae.dtype
    if not getattr(vae.config, "force_upcast", False) or before.itemsize >= 4:
        yield vae
        return
    try:
        yield vae.to(torch.float32)
    finally:
        vae.to(before)


def _sample(vae: Any, image: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ANN401
    found = vae.encode(image.to(vae.device, vae.dtype))
    # The tiny autoencoders know no distribution.
    drawn = found.latents if hasattr(found, "latents") else found.latent_dist.sample(generator)
    return drawn.float().cpu()


def _normalised(pipe: Any, z: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """SDXL undoes a mean and a deviation, flow models a shift, Stable Diffusion 1.x neither."""
    config = pipe.vae.config

    def channels(values: list[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    if getattr(pipe, "transformer", None) is not None:
        z = z - (getattr(config, "shift_factor", None) or 0)
    elif hasattr(pipe, "text_encoder_2"):
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            z = (z - channels(mean)) / channels(std)
    return z * config.scaling_factor
