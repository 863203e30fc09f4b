"""Replay with hooks: a low-rank branch beside the layer, whose weight stays untouched."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .part import Part
from .patch import Gates, Pair, Patch, Read
from .target import Target


class Hooked(Patch):
    """Adds one live branch to a layer's output.

    The branch is a pair of slots that are refilled in place, so a compiled graph stays valid.

    Args:
        target: The layer.
        read: Reads its factors.
        rank: Largest rank that can be live at once.
        dtype: What the branch computes in.
        part: For which samples of a call; None for all.
    """

    mode = "hooks"

    def __init__(
        self, target: Target, read: Read, rank: int, dtype: torch.dtype, part: Part | None = None
    ) -> None:
        super().__init__(target, read)
        self._rank, self._part = rank, part
        self._load(dtype)
        self._handle = self.module.register_forward_hook(self._after, with_kwargs=True)

    def tensors(self) -> list[Tensor]:
        """The factors, and the slots."""
        return [*super().tensors(), self._down, self._up]

    def remove(self) -> None:
        """Take the hook off; a graph that was compiled with it adds nothing any more."""
        self._handle.remove()
        self._up.zero_()

    def _load(self, dtype: torch.dtype) -> None:
        weight = self.module.weight
        place: Any = {"device": "cpu" if weight.is_meta else weight.device, "dtype": dtype}
        A, B = self.read(0)
        self._down = A.new_zeros((self._rank, *A.shape[1:]), **place)
        self._up = B.new_zeros((B.shape[0], self._rank, *B.shape[2:]), **place)

    def _form(self, A: Tensor, B: Tensor) -> Pair:
        return A, B

    def _apply(self, gates: Gates) -> None:
        """Refill the slots with the sources whose gate is not 0."""
        start = 0
        for gate, A, B in self._live(gates, self._down.device):
            rows = slice(start, start := start + A.shape[0])
            self._down[rows].copy_(A)
            self._up[:, rows].copy_(B if gate == 1 else B.float() * gate)
        if start < self._rank:
            self._down[start:].zero_()
            self._up[:, start:].zero_()

    def _after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        x: Tensor = args[0] if args else kwargs["input"]
        if self._part is None:
            return self._add(module, x, output)
        return self._part.within(x, output, partial(self._add, module))

    def _add(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The output with the branch, which is added in place where nobody minds."""
        return self._sum(module, output, self._inner(module, x))

    def _inner(self, module: nn.Module, x: Tensor) -> Tensor:
        """A·x, in the branch's dtype."""
        if self._down.device != x.device:
            with torch.inference_mode(False):
                self._down, self._up = self._down.to(x.device), self._up.to(x.device)
        x = x.to(self._down.dtype)
        if isinstance(module, nn.Conv2d):
            # The layer's own stride, padding, padding mode and dilation, with A as the kernel.
            return module._conv_forward(x, self._down, None)  # pyright: ignore[reportPrivateUsage]
        return functional.linear(x, self._down)

    def _sum(self, module: nn.Module, output: Tensor, inner: Tensor) -> Tensor:
        """The output plus B·inner."""
        if isinstance(module, nn.Conv2d):
            return output + functional.conv2d(inner, self._up).to(output.dtype)
        same = output.dtype == inner.dtype == self._up.dtype
        if not (same and self._may_change(output)):
            return output + functional.linear(inner, self._up).to(output.dtype)
        # The output is the layer's own fresh tensor: adding in place saves a pass over it.
        rows = inner.reshape(-1, inner.shape[-1])
        output.view(-1, output.shape[-1]).addmm_(rows, self._up.t())
        return output

    def _may_change(self, output: Tensor) -> bool:
        """Whether the output is this layer's own fresh tensor, that nobody else has seen."""
        hooks = self.module._forward_hooks  # pyright: ignore[reportPrivateUsage] - others may hold it
        return not torch.is_grad_enabled() and output.is_contiguous() and len(hooks) == 1
