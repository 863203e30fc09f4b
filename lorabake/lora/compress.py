"""The nearest update of a lower rank: truncated SVD (Eckart and Young)."""

from __future__ import annotations

import torch
from torch import Tensor

from .types import LowRank


def compress(layer: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best approximation of ΔW by `rank`, without a dense ΔW.

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
    u, s, vh = decomposed(up, down)
    root = s[:rank].sqrt()
    new_up = u[:, :rank] * root
    new_down = vh[:rank] * root[:, None]
    kept = LowRank(
        new_down.float().reshape(-1, *layer.down.shape[1:]),
        new_up.float().reshape(layer.up.shape[0], -1, *layer.up.shape[2:]),
    )
    total, lost = float(s.norm()), float(s[rank:].norm())
    return kept, lost / total if total > 0 else 0.0


def decomposed(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of a product, which is never formed.

    With B = Q_b·R_b and Aᵀ = Q_a·R_a the singular values of B·A are those of the small R_b·R_aᵀ.

    Args:
        up: B, `[out, r]`.
        down: A, `[r, in]`.

    Returns:
        U `[out, k]`, the k singular values from the largest on, and V transposed, `[k, in]`.
    """
    left, core_left = _orthogonal(up)
    right, core_right = _orthogonal(down.T)
    u, s, vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    return left @ u, s, vh @ right.T


def _orthogonal(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R; a matrix wider than tall is its own R."""
    rows, columns = tall.shape
    if columns >= rows:
        return torch.eye(rows, dtype=tall.dtype), tall
    q, r = torch.linalg.qr(tall)
    return q, r


def nearest(delta: Tensor, rank: int) -> tuple[LowRank, float]:
    """The best approximation of a dense ΔW: its projection on its first singular vectors.

    They are eigenvectors of the smaller Gram matrix, for which float64 is needed and which costs
    a tenth of an SVD.

    Args:
        delta: ΔW in float64, `[out, in]` or `[out, in, kh, kw]`.
        rank: At most what the result has; at least 1.

    Returns:
        As `compress`.
    """
    peak = float(delta.abs().amax()) or 1.0  # squares must stay in range
    flat = delta.flatten(1) / peak
    tall = flat.shape[0] >= flat.shape[1]
    matrix = flat if tall else flat.T
    vectors = torch.linalg.eigh(matrix.T @ matrix)[1][:, -rank:].flip(1)
    image = matrix @ vectors
    # Each rank's size is shared between its two factors.
    root = image.norm(dim=0).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    image, vectors = image / root * peak**0.5, vectors * root * peak**0.5
    up, down = (image, vectors.T) if tall else (vectors, image.T)
    error = float((flat * peak - up @ down).norm())
    total = float(flat.norm()) * peak
    kept = LowRank(
        down.float().reshape(-1, *delta.shape[1:]),
        up.float().reshape(delta.shape[0], -1, *(1 for _ in delta.shape[2:])),
    )
    return kept, error / total if total > 0 else 0.0
