"""Calling a pipeline with a seed of its own for each image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from ..errors import BaseModelError, OverrideError
from .blame import blame


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
        BaseModelError: The pipeline does not take one of the options, or its value.
        OverrideError: There are more steps than the scheduler has.
    """
    name = str(getattr(pipe, "name_or_path", None) or "")
    given = {name: value for name, value in options.items() if value is not None}
    takes = inspect.signature(pipe.__call__).parameters
    for option in given:
        if option not in takes:
            raise BaseModelError(
                f"{type(pipe).__name__} does not take {option}",
                where=name,
                advice="Leave that option away",
            )
    _check_steps(pipe, given.get("num_inference_steps"))
    images: list[Image] = []
    with blame(
        f"{type(pipe).__name__} cannot paint with these parts and options",
        where=name,
        advice="Change what the brackets name, or use another model",
    ):
        for seed in seeds:
            # On the CPU, so that a seed means the same noise on every machine.
            generator = torch.Generator("cpu").manual_seed(seed)
            images += pipe(prompt=prompt, generator=generator, output_type="pil", **given).images
    return images


def _check_steps(pipe: Any, steps: int | None) -> None:  # noqa: ANN401 - as above
    """Refuse more steps than the model was trained on, before schedulers differ about it."""
    limit = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if steps is not None and isinstance(limit, int) and 0 < limit < steps:
        raise OverrideError(
            f"{steps} is more than the scheduler's num_train_timesteps, {limit}",
            where="steps",
            advice=f"Give at most {limit}",
        )
