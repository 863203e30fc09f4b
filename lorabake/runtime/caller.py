"""Whose scheduler counts, when several pipelines share a denoiser."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from .manifest import DENOISERS


def uncompiled(module: Any) -> Any:  # noqa: ANN401 - anything may stand where a module should
    """A module out of its torch.compile wrapper, anything else as it is."""
    return getattr(module, "_orig_mod", module)


def scheduler_for(pipe: Any, denoiser: nn.Module) -> Any:  # noqa: ANN401 - any pipeline, any scheduler
    """The scheduler of the pipeline that is calling the denoiser at this moment.

    `from_pipe` makes pipelines that share a denoiser but not a scheduler, and the denoiser is not
    told who calls it, so this looks for the caller on the stack.

    Args:
        pipe: The pipeline that the bundle is attached to; it counts if no other one is calling.
        denoiser: Its denoiser.
    """
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] - there is no other way to see a caller
    while frame is not None:
        # Only of methods: to look at a function's variables keeps them alive until it returns.
        if frame.f_code.co_varnames[:1] == ("self",):
            caller = frame.f_locals.get("self")
            if caller is pipe or _owns(caller, denoiser):
                return caller.scheduler  # type: ignore[union-attr] - both have one
        frame = frame.f_back
    return pipe.scheduler


def _owns(caller: object, denoiser: nn.Module) -> bool:
    """Whether this is a pipeline around the denoiser."""
    if isinstance(caller, nn.Module) or not hasattr(
        getattr(caller, "scheduler", None), "timesteps"
    ):
        return False  # not one that schedules a learning rate, either
    return any(uncompiled(getattr(caller, name, None)) is denoiser for name in DENOISERS)
