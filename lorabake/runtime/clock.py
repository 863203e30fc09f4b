"""The clock: progress, read off the timestep of a call of the denoiser. It keeps no count."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AttachError

# Denoisers whose pipelines call them with t / 1000. It only matters where a value could be both,
# 1.0 for example: the last of SD3's timesteps or, divided, the first of FLUX's.
_DIVIDED = ("Flux", "Chroma", "QwenImage", "Ovis", "LongCat")


def position(timestep: float, dtype: torch.dtype, timesteps: Tensor, divided: bool) -> int | None:
    """First position at which a timestep stands in the schedule, None if nowhere.

    Pipelines round timesteps to the latents' dtype and some divide them by 1000, so the schedule
    is put through the same before it is compared.

    Args:
        timestep: What the denoiser was called with.
        dtype: Its type.
        timesteps: The scheduler's, on the CPU, in its own type `[n]`.
        divided: Whether t / 1000 is to be tried before t.
    """
    if timesteps.is_floating_point() and dtype.is_floating_point:
        roundings = dict.fromkeys((dtype, torch.bfloat16, torch.float16))
    else:
        roundings = {dtype: None}
    # A quotient may differ in its last place between devices.
    slack = torch.finfo(dtype).eps * abs(timestep) if dtype.is_floating_point else 0.0
    for rounding in roundings:
        rounded = timesteps.to(rounding)
        for values in (rounded / 1000, rounded) if divided else (rounded, rounded / 1000):
            distance = (values.double() - timestep).abs()
            nearest = int(distance.argmin())
            if float(distance[nearest]) <= slack:
                return nearest
    return None


class Clock:
    """Tells the progress of a call from its arguments and the pipeline's scheduler.

    Args:
        denoiser: Module whose `forward` has a parameter `timestep`.
        scheduler: Gives the pipeline's scheduler of the moment; it may be replaced between runs.

    Raises:
        AttachError: The denoiser takes no timestep.
    """

    def __init__(self, denoiser: nn.Module, scheduler: Callable[[], Any]) -> None:
        names = list(inspect.signature(denoiser.forward).parameters)
        name = type(denoiser).__name__
        if "timestep" not in names:
            raise AttachError(
                f"{name} takes no timestep",
                advice="Only a denoiser that is called with its timestep can follow a plan",
            )
        self._index = names.index("timestep")
        self._divided = any(family in name for family in _DIVIDED)
        self._scheduler = scheduler
        self._schedule: object = None
        self._timesteps = torch.empty(0)
        self._known: dict[tuple[float, torch.dtype], Fraction] = {}

    def progress(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Fraction:
        """Progress p in [0, 1) of a call with these arguments.

        Raises:
            AttachError: The timestep is not one of the scheduler's, or differs within the batch.
        """
        given = {"timestep": args[self._index]} if self._index < len(args) else kwargs
        value, dtype = _single(given.get("timestep"))
        self._follow(self._scheduler())
        if (value, dtype) not in self._known:
            self._known[value, dtype] = self._find(value, dtype)
        return self._known[value, dtype]

    def _follow(self, scheduler: Any) -> None:  # noqa: ANN401 - any scheduler
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None or len(timesteps) == 0:
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
        found = position(value, dtype, self._timesteps, self._divided)
        count = len(self._timesteps)
        if found is None:
            first, last = float(self._timesteps[0]), float(self._timesteps[-1])
            raise AttachError(
                f"the denoiser was called at timestep {value:g}, which is none of the "
                f"scheduler's {count} ({first:g} … {last:g})",
                advice="Let the pipeline run with its own scheduler, pipe.scheduler",
            )
        return Fraction(found, count)


def _single(timestep: object) -> tuple[float, torch.dtype]:
    """The one value of a number or of a batch of equal timesteps: one device transfer."""
    if isinstance(timestep, int | float):
        return float(timestep), torch.float32
    if not isinstance(timestep, Tensor):
        raise AttachError(
            f"the denoiser was called with {timestep!r} as its timestep",
            advice="A plan can only be followed by calls with a timestep",
        )
    values = timestep.detach().reshape(-1).tolist()
    if len(set(values)) != 1:
        raise AttachError(
            f"the samples of one batch are at different timesteps ({values[:4]})",
            advice="Call the denoiser with one timestep for the whole batch",
        )
    return float(values[0]), timestep.dtype
