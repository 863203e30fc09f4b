"""Two ways to add a layer's update, Σ g_i·B_i·A_i, and to take it away without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Factors = Sequence[tuple[Tensor, Tensor]]
"""Each source's (A, B): `[r, in]` or `[r, in, kh, kw]`, and `[out, r]` or `[out, r, 1, 1]`."""

Gates = tuple[float, ...]
Patchable = nn.Linear | nn.Conv2d


class Fused:
    """The layer's weight is W0 + ΔW, set in place; W0 is kept.

    Args:
        module: The layer.
        factors: On the weight's device.
    """

    mode = "fused"

    def __init__(self, module: Patchable, factors: Factors) -> None:
        self._module = module
        self._factors = list(factors)
        self._kept = module.weight.detach().clone()

    def apply(self, gates: Gates) -> None:
        """Set the weight to W0 + Σ g_i·B_i·A_i, accumulated in float32 or wider."""
        weight = self._module.weight.detach()
        self._follow(weight.device)
        total = self._kept.to(torch.promote_types(self._kept.dtype, torch.float32)).flatten(1)
        for gate, (down, up) in zip(gates, self._factors, strict=True):
            if gate != 0 and down.shape[0] > 0:
                A, B = down.flatten(1).to(total.dtype), up.flatten(1).to(total.dtype)
                total = torch.addmm(total, B, A, alpha=gate)
        weight.copy_(total.view(weight.shape))

    def remove(self) -> None:
        """Set the weight to W0, bit for bit."""
        self._module.weight.detach().copy_(self._kept)

    def _follow(self, device: torch.device) -> None:
        """Go where the pipeline was moved to."""
        if self._kept.device != device:
            self._kept = self._kept.to(device)
            self._factors = [(down.to(device), up.to(device)) for down, up in self._factors]


class Hooked:
    """A forward hook adds the live branch beside the layer, whose weight stays untouched.

    The branch is a pair of buffers that are refilled in place, so a compiled graph stays valid.

    Args:
        module: The layer.
        factors: On any one device.
        rank: Largest rank that can be live at once.
        dtype: What the branch computes in.
    """

    mode = "hooks"

    def __init__(self, module: Patchable, factors: Factors, rank: int, dtype: torch.dtype) -> None:
        self._module = module
        self._factors = list(factors)
        down, up = self._factors[0]
        self._down = down.new_zeros((rank, *down.shape[1:]), dtype=dtype)
        self._up = up.new_zeros((up.shape[0], rank, *up.shape[2:]), dtype=dtype)
        self._live = False
        self._handle = module.register_forward_hook(self._add, with_kwargs=True)

    def apply(self, gates: Gates) -> None:
        """Refill the branch with the sources whose gate is not 0."""
        start = 0
        for gate, (down, up) in zip(gates, self._factors, strict=True):
            if gate != 0 and down.shape[0] > 0:
                rows = slice(start, start := start + down.shape[0])
                self._down[rows].copy_(down)
                self._up[:, rows].copy_(up.float() * gate)
        self._down[start:].zero_()
        self._up[:, start:].zero_()
        self._live = start > 0

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        if not self._live:
            return output
        x: Tensor = args[0] if args else kwargs["input"]
        if self._down.device != x.device:
            with torch.inference_mode(False):
                self._down, self._up = self._down.to(x.device), self._up.to(x.device)
        x = x.to(self._down.dtype)
        if isinstance(module, nn.Conv2d):
            # The layer's own stride, padding, padding mode and dilation, with A as the kernel.
            inner = module._conv_forward(x, self._down, None)  # pyright: ignore[reportPrivateUsage]
            branch = functional.conv2d(inner, self._up)
        else:
            branch = functional.linear(functional.linear(x, self._down), self._up)
        return output + branch.to(output.dtype)
