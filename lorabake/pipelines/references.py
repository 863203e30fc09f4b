"""Reference latents of a LoRA: sampled from the LoRA itself, or encoded from its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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

    Returns:
        Float32 on the CPU, `[count, …]`.

    Raises:
        BaseModelError: The pipeline cannot be called like this.
    """
    found: list[Tensor] = []
    options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    where = str(getattr(pipe, "name_or_path", None) or "")
    with (
        torch.no_grad(),
        blame("cannot paint the references", where=where, advice="Use another model"),
    ):
        for i in range(count):
            generator = torch.Generator("cpu").manual_seed(seed + i)
            images = pipe(
                prompt, height=pixels, width=pixels, num_inference_steps=steps,
                generator=generator, output_type="latent", **options,
            ).images  # fmt: skip
            found.append(images.float().cpu())
            progress()
    return torch.cat(found)
