"""Column coefficients: the two rows of a stack's padding that hold them (SPEC.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import BundleError
from .manifest import COEFFICIENT_ROWS, Layer


def coefficient_rows(stack: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """A layer's coefficients (m_c, m_s), float32 `[in]`.

    Args:
        stack: The layer's `down`, `[R, in]` or `[R, in, kh, kw]`.
        layer: One that has columns.

    Raises:
        BundleError: One is 0, not finite, or not the same all over its kernel.
    """
    start, width = sum(layer.ranks), stack.shape[1]
    rows = stack[start : start + COEFFICIENT_ROWS].reshape(COEFFICIENT_ROWS, width, -1)
    rows = rows.to(torch.float32, copy=True)  # what the caller gets is not the file's
    if not rows.isfinite().all() or (rows == 0).any():
        raise BundleError(f"{layer} has column coefficients that are 0 or not finite")
    content, style = rows[..., 0]
    if (rows != rows[..., :1]).any():
        raise BundleError(f"{layer} has column coefficients that differ within a kernel")
    return content.contiguous(), style.contiguous()
