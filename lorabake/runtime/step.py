"""A scheduler's `step`, with something around it for as long as it is wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .patch import Uncopyable

Around = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""(scheduler, its own step, args, kwargs) → what the step returns."""


class Step(Uncopyable):
    """An attribute before the class's method, with the signature that pipelines ask for.

    Args:
        scheduler: Any scheduler of diffusers.
        around: Called in the place of its `step`.
    """

    def __init__(self, scheduler: Any, around: Around) -> None:  # noqa: ANN401 - as above
        self._scheduler, self._around = scheduler, around
        self._before = {k: v for k, v in vars(scheduler).items() if k == "step"}
        self._original = scheduler.step
        # What is around may be another one of these, whose attributes are its own.
        functools.update_wrapper(self, self._original, updated=())
        scheduler.step = self
        self._on = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the scheduler's own
        """The step, with what is around it."""
        if not self._on:
            return self._original(*args, **kwargs)
        return self._around(self._scheduler, self._original, args, kwargs)

    def stands(self, scheduler: object) -> bool:
        """Whether this is the scheduler whose step it is around."""
        return self._scheduler is scheduler

    def remove(self) -> None:
        """Put back what was there; if somebody wrapped it since, only stand in nobody's way.

        With it go those below that were removed while it stood around them.
        """
        self._on = False
        state = vars(self._scheduler)
        while isinstance(top := state.get("step"), Step) and not top._on:
            del state["step"]
            state.update(top._before)
