"""x̂_0: what the latents would be without noise, by a scheduler's own prediction type."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from .errors import AttachError

Form = Literal["cumulative", "exploding", "preserving", "flow"]

# What the latents of these schedulers are made of. DPM++ singlestep is not here: every other of its
# steps starts from a sample of its own.
_FORMS: dict[str, Form] = {
    "DDIMScheduler": "cumulative",
    "DDPMScheduler": "cumulative",
    "PNDMScheduler": "cumulative",
    "LCMScheduler": "cumulative",
    "TCDScheduler": "cumulative",
    "EulerDiscreteScheduler": "exploding",
    "EulerAncestralDiscreteScheduler": "exploding",
    "HeunDiscreteScheduler": "exploding",
    "LMSDiscreteScheduler": "exploding",
    "DPMSolverMultistepScheduler": "preserving",
    "DEISMultistepScheduler": "preserving",
    "UniPCMultistepScheduler": "preserving",
    "FlowMatchEulerDiscreteScheduler": "flow",
}
_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def prediction(scheduler: Any, where: str = "") -> str:  # noqa: ANN401 - any scheduler of diffusers
    """What a denoiser predicts for this scheduler: `epsilon`, `v_prediction`, `sample`, or flow.

    Args:
        scheduler: Any scheduler of diffusers.
        where: The bundle, for messages.

    Raises:
        AttachError: x̂_0 cannot be formed.
    """
    kind = type(scheduler).__name__
    form = _form(scheduler)
    config = getattr(scheduler, "config", None)
    found = "flow_prediction" if form == "flow" else getattr(config, "prediction_type", None)
    if form is None:
        raise AttachError(
            f"guidance needs x̂_0, and knows no way to it with {kind}",
            where=where,
            advice=f"Use one of {', '.join(name.removesuffix('Scheduler') for name in _FORMS)}, or "
            "attach with guidance=False",
        )
    if found not in _PREDICTIONS:
        raise AttachError(
            f"guidance needs x̂_0, and knows no way to it from prediction type {found} of {kind}",
            where=where,
            advice=f"Use {', '.join(_PREDICTIONS[:3])}, or attach with guidance=False",
        )
    return found


def original(scheduler: Any, timestep: Any, sample: Tensor, output: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """x̂_0 before a step, without the clipping or thresholding that a scheduler may add.

    Those have no gradient where they act, and latents are rarely clipped at all.

    Args:
        scheduler: Before its step; its step index is set here if it is not yet.
        timestep: One of its timesteps.
        sample: x_t.
        output: The denoiser's prediction, of the same shape.

    Returns:
        Latents of the shape and the dtype of x_t.

    Raises:
        AttachError: x̂_0 cannot be formed.
    """
    predicts = prediction(scheduler)
    if predicts == "sample":
        return output
    alpha, sigma = _at(scheduler, timestep)
    if predicts == "epsilon":
        return (sample - sigma * output) / alpha
    if predicts == "flow_prediction":
        return sample - sigma * output
    # Where x = x_0 + σ·ε, v is that of the latents scaled to variance 1.
    length = math.hypot(1, sigma) if _form(scheduler) == "exploding" else 1.0
    return alpha / length**2 * sample - sigma / length * output


def _at(scheduler: Any, timestep: Any) -> tuple[float, float]:  # noqa: ANN401 - as above
    """(α, σ) of the sample that the next step begins with, at this timestep."""
    if _form(scheduler) == "cumulative":
        kept = float(scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt(kept), math.sqrt(1 - kept)
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    index: Any = scheduler.step_index
    return level(scheduler, index)


def spread(scheduler: Any) -> float:  # noqa: ANN401 - as above
    """How much larger a scheduler keeps its latents than those of variance 1, √(1 + σ²) or 1.

    Papers mean the latter by x_t. A gradient with respect to them, and a change of them, is that
    much larger too, so one m means the same with every scheduler.

    Args:
        scheduler: With its step index at the latents in question.
    """
    if _form(scheduler) != "exploding":
        return 1.0
    return math.hypot(*level(scheduler, scheduler.step_index))


def level(scheduler: Any, index: int) -> tuple[float, float]:  # noqa: ANN401 - as above
    """(α, σ) of x = α·x_0 + σ·ε, at an index of a scheduler's `sigmas`."""
    sigma, form = float(scheduler.sigmas[index]), _form(scheduler)
    if form == "exploding":
        return 1.0, sigma
    if form == "flow" or getattr(scheduler.config, "use_flow_sigmas", False):
        return 1 - sigma, sigma
    return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)


def kinds(scheduler: object) -> list[str]:
    """Names of a scheduler's classes, which the runtime does not import."""
    return [kind.__name__ for kind in type(scheduler).__mro__]


def _form(scheduler: object) -> Form | None:
    return next((_FORMS[kind] for kind in kinds(scheduler) if kind in _FORMS), None)
