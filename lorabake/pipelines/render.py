"""Calling a pipeline with a seed of its own for each image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    given = _given(pipe, options)
    images: list[Image] = []
    with _painting(pipe):
        for seed in seeds:
            # On the CPU, so that a seed means the same noise on every machine.
            generator = torch.Generator("cpu").manual_seed(seed)
            images += pipe(prompt=prompt, generator=generator, output_type="pil", **given).images
    return images


def together(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    prompt: str,
    seeds: Sequence[int],
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> NDArray[np.float32]:
    """As `render` but in one call of the pipeline, and as the numbers that pictures are made of.

    Each image has noise of its own. Still the same seed among other seeds can differ in its last
    bits, because matrix products of other sizes are rounded in another order.

    Args:
        pipe: A loaded text-to-image pipeline.
        prompt: The same for all images.
        seeds: One per image.
        options: Arguments of the pipeline's call; those that are None are left to the pipeline.

    Returns:
        `[n, height, width, 3]`, from 0 to 1; NaN where the model paints NaN.

    Raises:
        BaseModelError: The pipeline does not take one of the options, or its value.
        OverrideError: There are more steps than the scheduler has.
    """
    given = _given(pipe, options)
    with _painting(pipe):
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        images = pipe(
            prompt=[prompt] * len(noise), generator=noise, output_type="np", **given
        ).images
    return np.asarray(images, np.float32)


def _given(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - as above
    """The options that are not None, after the pipeline has proved to take them."""
    given = {name: value for name, value in options.items() if value is not None}
    takes = inspect.signature(pipe.__call__).parameters
    for option in given:
        if option not in takes:
            raise BaseModelError(
                f"{type(pipe).__name__} does not take {option}",
                where=_name(pipe),
                advice="Leave that option away",
            )
    _check_steps(pipe, given.get("num_inference_steps"))
    return given


def _painting(pipe: Any) -> AbstractContextManager[None]:  # noqa: ANN401 - as above
    return blame(
        f"{type(pipe).__name__} cannot paint with these parts and options",
        where=_name(pipe),
        advice="Change what the brackets name, or use another model",
    )


def _name(pipe: Any) -> str:  # noqa: ANN401 - as above
    return str(getattr(pipe, "name_or_path", None) or "")


def _check_steps(pipe: Any, steps: int | None) -> None:  # noqa: ANN401 - as above
    """Refuse more steps than the model was trained on, before schedulers differ about it."""
    limit = getattr(pipe.scheduler.config, "num_train_timesteps", None)
    if steps is not None and isinstance(limit, int) and 0 < limit < steps:
        raise OverrideError(
            f"{steps} is more than the scheduler's num_train_timesteps, {limit}",
            where="steps",
            advice=f"Give at most {limit}",
        )
