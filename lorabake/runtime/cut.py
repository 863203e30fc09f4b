"""One call of a denoiser for both halves of guidance, cut into a call for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .halves import Halves
from .part import ALL, NONE, batch
from .patch import Uncopyable


class Cut(Uncopyable):
    """Two calls of a denoiser in the place of one, the first of them for the conditional half.

    For samples that come as lists (Z-Image): layers see the tokens of all of them as rows, which
    cannot be told apart.

    Args:
        denoiser: What the pipeline calls.
        halves: Of the same; asked first, and told of each of the two calls.
    """

    def __init__(self, denoiser: nn.Module, halves: Halves) -> None:
        self._denoiser, self._halves = denoiser, halves
        self._rest: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._handles = [
            denoiser.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - the decorator is typed loosely
            denoiser.register_forward_hook(self._after),  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType] - likewise
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()

    @torch.compiler.disable
    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - arguments, or None for the same
        if self._halves.cut == NONE:
            return None
        self._rest = self._halves.cut = None
        if self._halves.share(args, kwargs) == ALL:
            return None
        samples = batch((*args, *kwargs.values()))[0]
        first, second = (_half((args, kwargs), samples, i) for i in (0, 1))
        self._rest, self._halves.cut = second, ALL
        return first

    @torch.compiler.disable
    def _after(self, _: nn.Module, __: tuple[Any, ...], result: Any) -> Any:  # noqa: ANN401 - a denoiser's
        if self._rest is None:
            return None
        (args, kwargs), self._rest = self._rest, None
        self._halves.cut = NONE
        try:
            other = self._denoiser(*args, **kwargs)
        finally:
            self._halves.cut = None
        if isinstance(result, tuple):
            return ([*result[0], *other[0]], *result[1:])
        result.sample = [*result.sample, *other.sample]
        return result


def _half(value: Any, samples: int, index: int) -> Any:  # noqa: ANN401 - any argument
    """The first or the second half of what has an entry for each sample; others as they are."""
    if isinstance(value, dict):
        return {key: _half(one, samples, index) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_half(one, samples, index) for one in value)
    sized = isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)
    if sized and len(value) == samples:
        return value[: samples // 2] if index == 0 else value[samples // 2 :]
    return value
