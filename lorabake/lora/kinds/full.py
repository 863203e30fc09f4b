"""A full difference of weights: ΔW as it is."""

from __future__ import annotations

import torch

from ..compress import nearest
from ..types import LowRank
from .kind import Kind, Size, Tensors


def _size(of: Tensors) -> Size | None:
    whole = of["diff"]
    if whole.ndim not in (2, 4):
        return None
    return Size(tuple(whole.shape), min(whole.shape[0], whole[0].numel()), None)


def _exact(of: Tensors) -> LowRank:
    """ΔW times the identity on its shorter side."""
    whole = of["diff"].float()
    (rows, *rest), columns = whole.shape, whole[0].numel()
    ones = tuple(1 for _ in rest[1:])
    if rows <= columns:
        return LowRank(whole, torch.eye(rows).reshape(rows, rows, *ones))
    return LowRank(
        torch.eye(columns).reshape(columns, *rest),
        whole.reshape(rows, columns, *ones),
    )


KIND = Kind(
    name="diff",
    layouts=(frozenset({"diff"}),),
    needs="diff stands alone",
    shapes="[out, in] or [out, in, height, width]",
    size=_size,
    exact=_exact,
    nearest=lambda of, rank: nearest(of["diff"].double(), rank),
)
