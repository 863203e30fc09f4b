"""Calling a pipeline with a seed of its own for each image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from ..errors import BaseModelError
from .quiet import quiet


def render(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    prompt: str,
    seeds: Sequence[int],
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> list[Image]:
    """One image per seed, each independent of the others and of the device.

    Args:
        pipe: A loaded text-to-image pipeline.
        prompt: The same for all images.
        seeds: One per image.
        options: Arguments of the pipeline's call; those that are None are left to the pipeline.

    Raises:
        BaseModelError: The pipeline does not take one of the options.
    """
    given = {name: value for name, value in options.items() if value is not None}
    takes = inspect.signature(pipe.__call__).parameters
    for name in given:
        if name not in takes:
            raise BaseModelError(
                f"{type(pipe).__name__} does not take {name}", advice="Leave that option away"
            )
    images: list[Image] = []
    with quiet():
        for seed in seeds:
            # On the CPU, so that a seed means the same noise on every machine.
            generator = torch.Generator("cpu").manual_seed(seed)
            images += pipe(prompt=prompt, generator=generator, output_type="pil", **given).images
    return images
