"""The part of a call's samples that the LoRAs act on: all, none, or those of one half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .errors import AttachError
from .fused import Fused

Share = tuple[int, int, int]
"""(a, b, n): of n equal parts of a call's rows those from the a-th to before the b-th."""

ALL: Share = (0, 1, 1)
NONE: Share = (0, 0, 1)
PERTURBED: Share = (1, 3, 3)
"""Of an unconditional, a conditional and a conditional part with perturbed attention."""

Add = Callable[[Tensor, Tensor], Tensor]
"""(rows of a layer's input, the same rows of its output) → these with a branch added."""


class Part:
    """What the layers of a component are told of the call of the moment.

    Args:
        separate: Whether each half of guidance has calls of its own, so that it is all or none.
    """

    def __init__(self, *, separate: bool) -> None:
        self.separate, self.share = separate, ALL
        self.fused: list[Fused] = []
        self._gate = torch.tensor(True)
        self._samples, self._device = 1, self._gate.device

    def put(self, share: Share, samples: int, device: torch.device) -> None:
        """Say what the next call is to be computed with.

        Args:
            share: Of the call's samples those that are conditional.
            samples: How many there are.
            device: Where they are.

        Raises:
            AttachError: Fused weights cannot be two things in one call.
        """
        if self.fused and share not in (ALL, NONE):
            raise AttachError(
                "a pipeline that computes both halves of guidance in one call shares a denoiser "
                "whose layers are fused, for one that has two calls",
                advice='Attach the bundle with mode="hooks"',
            )
        if self.separate and (share != self.share or self._gate.device != device):
            # Another tensor each time: a gradient may still go back through the one before.
            self._gate = torch.full((), share == ALL, device=device)
        self.share, self._samples, self._device = share, samples, device
        for patch in self.fused:
            patch.show(base=share == NONE)

    def resumed(self) -> Callable[[], None]:
        """What puts everything as it is now, later."""
        return partial(self.put, self.share, self._samples, self._device)

    def within(self, x: Tensor, output: Tensor, add: Add) -> Tensor:
        """A layer's output with a branch added to the rows of this part.

        Args:
            x: Its input `[rows, …, in]` (`[rows, in, h, w]`); its rows are those of the samples, in
                their order.
            output: `[rows, …, out]`, of as many rows.
            add: Adds the branch, in place if it may.

        Raises:
            AttachError: Its rows cannot be those of several parts.
        """
        if self.separate and torch.compiler.is_compiling():
            # One graph for both halves: B·A·0 is 0.
            return add(torch.where(self._gate, x, 0), output)
        rows = x.shape[0]
        start, stop, of = self._share(rows)
        if start == stop:
            return output
        if stop - start == of:
            return add(x, output)
        if rows % of:
            raise AttachError(
                f"a layer computes {rows} rows for all {of} parts of a batch of guidance together, "
                "so a LoRA cannot act in one of them alone",
                advice='Attach with half="both"',
            )
        first, last = rows * start // of, rows * stop // of
        mine = output[first:last]
        found = add(x[first:last], mine)
        if found is mine:  # changed in place
            return output
        return torch.cat((output[:first], found, output[last:]))

    def _share(self, rows: int) -> Share:
        """Of the rows of one layer."""
        if self.share == PERTURBED and rows < self._samples:
            # Where attention is perturbed, that part is computed apart from the other two.
            return ALL if 3 * rows == self._samples else (1, 2, 2)
        return self.share


def batch(values: Sequence[object]) -> tuple[int, torch.device]:
    """How many samples a denoiser is given: rows of its first tensor, or length of a list."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim > 0:
            return len(value), value.device
        if isinstance(value, list | tuple) and (inside := list(_tensors(value))):
            return len(value), inside[0].device
    return 1, torch.device("cpu")


def _tensors(values: Sequence[object]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
