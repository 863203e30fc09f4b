"""What a pipeline tells its denoiser beside the noisy latents: recorded from its own call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BaseModelError
from ..runtime.fit import denoisers
from .blame import blame

_CLOCK = "timestep"


class _Recorded(BaseException):
    """Carries the arguments out of the pipeline; not an `Exception`, so that nothing stops it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


@dataclass(frozen=True)
class Condition:
    """One prompt as a denoiser is told it.

    Attributes:
        arguments: Keyword arguments of the denoiser's forward, without latents and timestep;
            tensors with one row per sample have one row.
        sample: Name of the argument that takes the latents.
        shape: Of the latents of one sample, without the batch.
        clock: What the pipeline multiplies the scheduler's timestep with, 1 or 1/1000; a clock of
            whole numbers has 1.
    """

    arguments: Mapping[str, Any]
    sample: str
    shape: tuple[int, ...]
    clock: float


def denoiser(pipe: Any) -> Any:  # noqa: ANN401 - any diffusers pipeline, any model of it
    """The pipeline's denoiser.

    Raises:
        BaseModelError: It has two, each for a part of the timesteps.
    """
    names = denoisers(pipe)
    if len(names) > 1:
        raise BaseModelError(
            f"{type(pipe).__name__} has two denoisers, {' and '.join(names)}; coefficients are "
            "trained with one only",
            advice="Use a method that needs no training, such as klora",
        )
    return getattr(pipe, names[0])


def size(pipe: Any, resolution: int | None) -> int:  # noqa: ANN401 - any diffusers pipeline
    """Height and width in pixels: the one asked for, else what the model was trained with.

    Raises:
        BaseModelError: The model paints in steps that the resolution is no multiple of.
    """
    scale: int = pipe.vae_scale_factor
    native = getattr(pipe, "default_sample_size", None) or denoiser(pipe).config.sample_size
    if not resolution and not isinstance(native, int):
        raise BaseModelError(
            f"{type(pipe).__name__} does not say which size it paints in",
            where="resolution",
            advice="Give its height and width in pixels, for example --set resolution=512",
        )
    found = resolution or native * scale
    # UNet pipelines take multiples of 8; transformers put two by two latents into one token.
    grain = math.lcm(8, scale) if hasattr(pipe, "unet") else 2 * scale
    if found % grain:
        raise BaseModelError(
            f"{found} pixels is not a multiple of {grain}, which {type(pipe).__name__} paints in",
            where="resolution",
            advice=f"Give {max(grain, found // grain * grain)}",
        )
    return found


def record(pipe: Any, prompt: str, pixels: int) -> Condition:  # noqa: ANN401 - any diffusers pipeline
    """Let a pipeline prepare everything for a prompt, and stop it when it calls its denoiser.

    So prompt encoding, size and crop embeddings, position ids and packing are the pipeline's own,
    whatever its architecture. Classifier-free guidance is off; where guidance is an input of the
    denoiser (FLUX), it is the pipeline's default.

    Args:
        pipe: A text-to-image pipeline.
        prompt: What to paint.
        pixels: Height and width.

    Raises:
        BaseModelError: The pipeline cannot be called like this, or has a clock of its own.
    """
    model = denoiser(pipe)
    embedded = getattr(model.config, "guidance_embeds", False)
    options: dict[str, Any] = {} if embedded else {"guidance_scale": 1.0}
    handle = model.register_forward_pre_hook(_catch, with_kwargs=True)
    where = str(getattr(pipe, "name_or_path", None) or "")
    advice = "Check the prompt, and that the model is for text-to-image"
    try:
        with torch.no_grad(), blame("cannot prepare the prompt", where=where, advice=advice):
            pipe(
                prompt, height=pixels, width=pixels, num_inference_steps=1, output_type="latent",
                generator=torch.Generator("cpu").manual_seed(0), **options,
            )  # fmt: skip
    except _Recorded as found:
        return _condition(pipe, found.arguments)
    finally:
        handle.remove()
    raise BaseModelError("never calls its denoiser", where=where, advice=advice)


def _catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    raise _Recorded(dict(bound.arguments))


def _condition(pipe: Any, arguments: dict[str, Any]) -> Condition:  # noqa: ANN401 - as above
    sample = next(iter(arguments))
    latents, told = arguments.pop(sample), arguments.pop(_CLOCK, None)
    first = float(pipe.scheduler.timesteps[0])
    clock = None if told is None else _clock(float(torch.as_tensor(told).flatten()[0]), first)
    if clock is None or not isinstance(latents, Tensor) or len(latents) != 1:
        raise BaseModelError(
            f"{type(pipe).__name__} calls its denoiser in a way that training does not know",
            where=str(getattr(pipe, "name_or_path", None) or ""),
            advice="Use a method that needs no training, such as klora",
        )
    return Condition(
        {k: v for k, v in arguments.items() if k != "return_dict"},
        sample, tuple(latents.shape[1:]), clock,
    )  # fmt: skip


def _clock(told: float, timestep: float) -> float | None:
    """What makes the denoiser's time of the scheduler's; None if neither 1 nor 1/1000 does."""
    return next((c for c in (1.0, 1e-3) if abs(told - c * timestep) <= 0.01 * c * timestep), None)


def joined(conditions: list[Condition], rows: int) -> dict[str, Any] | None:
    """Arguments for one call with `rows` samples of each condition, in order.

    Returns:
        The arguments; None where the conditions cannot share a call, because their prompts are of
        different lengths for example.
    """
    found = [condition.arguments for condition in conditions]
    try:
        return _joined(found, rows)
    except ValueError:
        return None


def _joined(values: list[Any], rows: int) -> Any:  # noqa: ANN401 - a tree of arguments
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _joined([value[key] for value in values], rows) for key in first}
    if not isinstance(first, Tensor):
        if any(value != first for value in values):
            raise ValueError
        return first
    if any(value.shape != first.shape for value in values):
        raise ValueError
    if first.ndim and len(first) == 1:
        return torch.cat([value.repeat_interleave(rows, 0) for value in values])
    if not all(torch.equal(value, first) for value in values):  # position ids have no batch
        raise ValueError
    return first
