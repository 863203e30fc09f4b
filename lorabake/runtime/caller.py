"""Which pipeline is calling, when several share a model, and where in its code it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from .manifest import DENOISERS

_MODELS = (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")


class Caller(NamedTuple):
    """A method of a pipeline that is running.

    Attributes:
        pipe: The pipeline.
        method: The method's qualified name, such as `StableDiffusionPipeline.__call__`.
        values: Its variables at this moment.
    """

    pipe: Any
    method: str
    values: Mapping[str, Any]


def uncompiled(module: Any) -> Any:  # noqa: ANN401 - anything may stand where a module should
    """A module out of its torch.compile wrapper, anything else as it is."""
    return getattr(module, "_orig_mod", module)


def callers(pipe: Any, model: nn.Module) -> Iterator[Caller]:  # noqa: ANN401 - any pipeline
    """The methods of pipelines around a model that are running, the innermost first.

    `from_pipe` makes pipelines that share a model but not a scheduler, and the model is not told
    who calls it, so this looks for the callers on the stack.

    Args:
        pipe: The pipeline that the bundle is attached to.
        model: One of its models.
    """
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] - there is no other way to see a caller
    while frame is not None:
        # Only of methods: to look at a function's variables keeps them alive until it returns.
        if frame.f_code.co_varnames[:1] == ("self",):
            caller = frame.f_locals.get("self")
            if caller is pipe or _owns(caller, model):
                yield Caller(caller, frame.f_code.co_qualname, frame.f_locals)
        frame = frame.f_back


def scheduler_for(pipe: Any, denoiser: nn.Module) -> Any:  # noqa: ANN401 - any pipeline, any scheduler
    """The scheduler of the pipeline that is calling the denoiser at this moment.

    Args:
        pipe: The pipeline that the bundle is attached to; it counts if no other one is calling.
        denoiser: Its denoiser.
    """
    caller = next(callers(pipe, denoiser), None)
    return pipe.scheduler if caller is None else caller.pipe.scheduler


def _owns(caller: object, model: nn.Module) -> bool:
    """Whether this is a pipeline around the model."""
    if isinstance(caller, nn.Module) or not hasattr(
        getattr(caller, "scheduler", None), "timesteps"
    ):
        return False  # not one that schedules a learning rate, either
    return any(uncompiled(getattr(caller, name, None)) is model for name in _MODELS)
