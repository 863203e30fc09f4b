"""The nearest update of a lower rank, without a dense ΔW."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import LowRank


def compress(layer: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best approximation of ΔW by `rank` (truncated SVD; Eckart and Young).

    With B = Q_b·R_b and Aᵀ = Q_a·R_a the singular values of B·A are those of the small R_b·R_aᵀ.

    Args:
        layer: Factors of any rank, linear or convolutional; scale and columns are folded in.
        rank: At most what the result has; at least 1.

    Returns:
        Factors in float32 on the CPU with scale 1, and ‖error‖ / ‖ΔW‖ as Frobenius norms. A layer
        that has no more ranks than that is handed on as it is, with error 0.
    """
    if layer.rank <= rank:
        return layer, 0.0
    up = layer.up.double().flatten(1) * layer.scale
    down = layer.weighted(torch.float64).flatten(1)
    left, core_left = _orthogonal(up)
    right, core_right = _orthogonal(down.T)
    u, s, vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    root = s[:rank].sqrt()
    new_up = left @ (u[:, :rank] * root)
    new_down = (vh[:rank] * root[:, None]) @ right.T
    kept = LowRank(
        new_down.float().reshape(-1, *layer.down.shape[1:]),
        new_up.float().reshape(layer.up.shape[0], -1, *layer.up.shape[2:]),
    )
    total = float(s.square().sum())
    lost = float(s[rank:].square().sum())
    return kept, (lost / total) ** 0.5 if total > 0 else 0.0


def _orthogonal(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R; a matrix wider than tall is its own R."""
    rows, columns = tall.shape
    if columns >= rows:
        return torch.eye(rows, dtype=tall.dtype), tall
    q, r = torch.linalg.qr(tall)
    return q, r
