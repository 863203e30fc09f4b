"""The tick: before each call of a denoiser, its layers are set to what the plan says now."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from .clock import Clock
from .patch import Gates, Patch, Uncopyable

Column = tuple[Gates, ...]
"""The gates of all layers of a denoiser at one moment."""


class Tick(Uncopyable):
    """A forward pre-hook on a denoiser. Where nothing switches it looks at no layer.

    Args:
        denoiser: What the pipeline calls, which may be a torch.compile wrapper.
        clock: Tells the progress.
        patches: The denoiser's layers, at least one.
        column: Their gates at a progress; the same object where they are the same.
        state: Tells in what state the weights are, cheaply.
        follow: Called when that has changed.
        seen: Gets the progress of every call.
        halves: Called with the arguments of every call; None for nothing.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        clock: Clock,
        patches: Sequence[Patch],
        column: Callable[[Fraction], Column],
        state: Callable[[], object],
        follow: Callable[[], None],
        seen: set[Fraction],
        halves: Callable[[tuple[Any, ...], Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._halves = halves
        self._clock, self._patches, self._column = clock, patches, column
        self._state, self._follow, self._seen = state, follow, seen
        self._known = state()
        self._now: Column | None = None
        self._handle = denoiser.register_forward_pre_hook(
            self._set,  # pyright: ignore[reportAttributeAccessIssue] - the decorator is typed loosely
            prepend=True,
            with_kwargs=True,
        )

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    # Kept out of compiled graphs, which begin behind it: weights and slots change in place.
    @torch.compiler.disable
    @torch.inference_mode(False)
    def _set(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        progress = self._clock.progress(args, kwargs)
        if (state := self._state()) != self._known:
            self._now = None
            self._follow()
            self._known = state
        column = self._column(progress)
        if column is not self._now:
            self._now = None  # unknown, should one of the next lines fail
            for patch, gates in zip(self._patches, column, strict=True):
                patch.set(gates)
            self._now = column
        if self._halves is not None:
            self._halves(args, kwargs)
        self._seen.add(progress)
