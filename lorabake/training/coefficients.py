"""Column coefficients: one flat tensor, two leaves per layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Coefficients:
    """m_c and m_s of all layers, starting from 1.

    The optimiser and the similarity term see one tensor, every layer sees slices of it that are
    leaves of their own: autograd then adds a layer's gradient to its slices of the flat one,
    instead of to a tensor of the whole size.

    Args:
        widths: Input columns of each layer.
        device: Where they are.
        dtype: Float32, or float64 beside a model in float64.

    Attributes:
        flat: `[2, columns]`, m_c above m_s, layer after layer.
        layer: Which layer a column belongs to, `[columns]`.
        layers: (m_c, m_s) of each layer, `[in]` both.
    """

    def __init__(
        self, widths: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.flat = torch.ones(2, sum(widths), device=device, dtype=dtype).requires_grad_()
        self.flat.grad = torch.zeros_like(self.flat)
        counts = torch.tensor(widths, device=device)
        self.layer = torch.arange(len(widths), device=device).repeat_interleave(counts)
        ends = torch.tensor([0, *widths]).cumsum(0).tolist()
        slices = [slice(start, end) for start, end in pairwise(ends)]
        self.layers = [(self._leaf(0, columns), self._leaf(1, columns)) for columns in slices]

    def _leaf(self, row: int, columns: slice) -> Tensor:
        leaf = self.flat.detach()[row, columns].requires_grad_()
        leaf.grad = self.grad[row, columns]
        return leaf

    @property
    def grad(self) -> Tensor:
        """Gradient of `flat`; that of each leaf is a part of it."""
        if self.flat.grad is None:
            raise RuntimeError("the gradient was taken away")
        return self.flat.grad

    def load(self, flat: Tensor) -> None:
        """Take over values, `[2, columns]`."""
        with torch.no_grad():
            self.flat.copy_(flat)
