"""The clock: progress, read off the timestep of a call of the denoiser. It keeps no count."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AttachError

Form = Callable[[Tensor, torch.dtype], Tensor]
"""What a pipeline makes of the scheduler's timestep before it calls the denoiser in a dtype."""


def _plain(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype)


def _divided(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) / 1000


def _divided_first(t: Tensor, dtype: torch.dtype) -> Tensor:
    return (t / 1000).to(dtype)


def _inverted(t: Tensor, dtype: torch.dtype) -> Tensor:
    return (1 - t / 1000).to(dtype)


def _earlier(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype) - 1


# By the first letters of the denoiser's class. A value may be possible in two forms, 1.0 for
# example: the last of SD3's timesteps or, divided, the first of FLUX's; and t / 1000 runs through
# the same values as 1 − t / 1000, the other way round.
_FORMS: dict[tuple[str, ...], Form] = {
    ("Chroma", "Flux", "LongCatImage", "NucleusMoE", "Ovis", "QwenImage"): _divided,
    ("AuraFlow", "BriaFibo2", "Krea2", "LongCatAudio", "PRX"): _divided_first,
    ("Ideogram4", "Lumina", "ZImage"): _inverted,
    ("GlmImage",): _earlier,
}
_NAMES = ("timestep", "timesteps", "t", "timestep_ratio")


def forms(denoiser: nn.Module) -> tuple[Form, ...]:
    """The forms in which a denoiser may be given a timestep, the likeliest first."""
    name = type(denoiser).__name__
    own = next((form for names, form in _FORMS.items() if name.startswith(names)), _plain)
    scale = getattr(getattr(denoiser, "config", None), "timestep_scale", None)
    if isinstance(scale, float):
        own = lambda t, dtype: t.to(dtype) * scale  # noqa: E731 - Sana's own factor
    return tuple(dict.fromkeys((own, _plain, _divided)))


def position(
    timestep: float, dtype: torch.dtype, timesteps: Tensor, forms: Sequence[Form]
) -> int | None:
    """First position at which a timestep stands in the schedule, None if nowhere.

    Pipelines round timesteps to the latents' dtype and bring them into another form, so the
    schedule is put through the same before it is compared.

    Args:
        timestep: What the denoiser was called with.
        dtype: Its type.
        timesteps: The scheduler's, on the CPU, in its own type `[n]`.
        forms: In which it may be, in this order.
    """
    if timesteps.is_floating_point() and dtype.is_floating_point:
        roundings = dict.fromkeys((dtype, torch.bfloat16, torch.float16))
    else:
        roundings = {dtype: None}
    for form in forms:
        slack = _slack(timestep, dtype, exact=form is _plain)
        for rounding in roundings:
            distance = (form(timesteps, rounding).double() - timestep).abs()
            nearest = int(distance.argmin())
            if float(distance[nearest]) <= slack:
                return nearest
    return None


def _slack(timestep: float, dtype: torch.dtype, *, exact: bool) -> float:
    """How far the value of a form may be off: devices differ in its last place."""
    if not dtype.is_floating_point or (exact and dtype.itemsize < 4):
        return 0.0
    # Of 1 − t / 1000 it is the last place of 1, of which no neighbour is so close in float32.
    return torch.finfo(dtype).eps * max(abs(timestep), float(dtype.itemsize >= 4))


class Clock:
    """Tells the progress of a call from its arguments and the pipeline's scheduler.

    Args:
        denoiser: Module whose `forward` has a parameter for the timestep.
        scheduler: Gives the scheduler of the moment; it may be replaced between runs.

    Raises:
        AttachError: The denoiser takes no timestep.
    """

    def __init__(self, denoiser: nn.Module, scheduler: Callable[[], Any]) -> None:
        names = list(inspect.signature(denoiser.forward).parameters)
        found = [name for name in _NAMES if name in names]
        if not found:
            raise AttachError(
                f"{type(denoiser).__name__} takes no timestep",
                advice="Only a denoiser that is called with its timestep can follow a plan",
            )
        self._name, self._index = found[0], names.index(found[0])
        self._forms = forms(denoiser)
        self._scheduler = scheduler
        self._schedule: object = None
        self._timesteps = torch.empty(0)
        self._known: dict[tuple[float, torch.dtype], Fraction] = {}

    def progress(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Fraction:
        """Progress p in [0, 1) of a call with these arguments.

        Raises:
            AttachError: The timestep is not one of the scheduler's, or differs within the batch.
        """
        given = args[self._index] if self._index < len(args) else kwargs.get(self._name)
        value, dtype = _single(given)
        self._follow(self._scheduler())
        if (value, dtype) not in self._known:
            self._known[value, dtype] = self._find(value, dtype)
        return self._known[value, dtype]

    def _follow(self, scheduler: Any) -> None:  # noqa: ANN401 - any scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or len(timesteps) == 0 or _untouched(scheduler, len(timesteps)):
            raise AttachError(
                f"{type(scheduler).__name__} has no timesteps yet",
                advice="Call its set_timesteps before the denoiser",
            )
        # A run sets a new tensor; the old one is kept here, so its identity is not reused.
        if timesteps is not self._schedule:
            self._schedule = timesteps
            self._timesteps = torch.as_tensor(timesteps).detach().cpu()
            self._known = {}

    def _find(self, value: float, dtype: torch.dtype) -> Fraction:
        found = position(value, dtype, self._timesteps, self._forms)
        count = len(self._timesteps)
        if found is None:
            first, last = float(self._timesteps[0]), float(self._timesteps[-1])
            raise AttachError(
                f"the denoiser was called at timestep {value:g}, which is none of the "
                f"scheduler's {count} ({first:g} … {last:g})",
                advice="Let the pipeline run with its own scheduler, pipe.scheduler",
            )
        return Fraction(found, count)


def _untouched(scheduler: Any, count: int) -> bool:  # noqa: ANN401 - any scheduler
    """Whether its list is the one that most schedulers are made with, one of all timesteps."""
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    return count == trained and getattr(scheduler, "num_inference_steps", None) is None


def _single(timestep: object) -> tuple[float, torch.dtype]:
    """The one value of a number or of a batch of equal timesteps: one device transfer."""
    if isinstance(timestep, Real):
        return float(timestep), torch.float32
    if not isinstance(timestep, Tensor):
        raise AttachError(
            f"the denoiser was called with {timestep!r} as its timestep",
            advice="A plan can only be followed by calls with a timestep",
        )
    if timestep.ndim > 1:  # one per token; those of a given first frame are at 0
        timestep = timestep.flatten(1).amax(1)
    values = timestep.detach().reshape(-1).tolist()
    if len(set(values)) != 1:
        raise AttachError(
            f"the samples of one batch are at different timesteps ({values[:4]})",
            advice="Call the denoiser with one timestep for the whole batch",
        )
    return float(values[0]), timestep.dtype
