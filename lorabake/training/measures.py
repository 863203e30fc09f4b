"""What a training did to the coefficients, in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lora.types import LowRank

BARELY = 0.02
"""Mean |m − 1| below which a run did not move; public re-implementations end near 0.005."""


def movement(m: Tensor) -> float:
    """Mean |m − 1| of coefficients `[2, columns]`."""
    return float((m - 1).abs().mean())


def product(m: Tensor) -> float:
    """Mean |m_c·m_s| over the columns of `[2, columns]`; 1 for the direct merge."""
    return float((m[0] * m[1]).abs().mean())


def column_cosine(
    layers: Sequence[tuple[LowRank, LowRank]], m: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """How far the two updates overlap column by column, from 0 to 1, mean over the layers.

    The cosine of column j of ΔW_c with column j of ΔW_s (paper, Fig. 3b) does not change when the
    two are scaled; what a coefficient changes is how much they weigh. So each column counts by its
    size: Σ_j |⟨m_c,j·c_j, m_s,j·s_j⟩| / (‖m_c ⊗ ΔW_c‖·‖m_s ⊗ ΔW_s‖).

    Args:
        layers: Content and style factors of each layer.
        m: (m_c, m_s) of each, `[in]`.
    """
    found = [_overlap(*pair, *both) for pair, both in zip(layers, m, strict=True)]
    return sum(found) / len(found)


def _overlap(content: LowRank, style: LowRank, m_c: Tensor, m_s: Tensor) -> float:
    dot = (_columns(content, style) * m_c * m_s).abs().sum()
    norms = [(_columns(x, x) * m.square()).sum() for x, m in ((content, m_c), (style, m_s))]
    size = float((norms[0] * norms[1]).clamp_min(0).sqrt())
    return float(dot) / size if size > 0 else 0.0


def _columns(one: LowRank, other: LowRank) -> Tensor:
    """⟨column j of one's update, of the other's⟩ for all input columns (channels), `[in]`."""
    B = [x.up.double().flatten(1) for x in (one, other)]
    A = [x.down.double().flatten(1) for x in (one, other)]
    products = (A[0] * (B[0].T @ B[1] @ A[1])).sum(0)
    return one.scale * other.scale * products.view(one.down.shape[1], -1).sum(1)


def summary(
    layers: Sequence[tuple[LowRank, LowRank]], m: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """The figures of a report, before (all coefficients 1) and after."""
    flat = torch.stack([torch.cat(side) for side in zip(*m, strict=True)])
    ones = [(torch.ones_like(c), torch.ones_like(s)) for c, s in m]
    return {
        "coefficients": flat.numel(),
        "movement": movement(flat),
        "product_before": 1.0,
        "product_after": product(flat),
        "column_cosine_before": column_cosine(layers, ones),
        "column_cosine_after": column_cosine(layers, m),
    }
