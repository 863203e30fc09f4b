"""How far stored factors are from the LoRA they came from, without a dense ΔW."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..lora.types import LowRank
from .fold import balance, largest, working

SLACK = 2.0
"""How often a number may have been rounded: by the bundle and by another tool, or as A·diag(m)."""


class Deviation(NamedTuple):
    """Distance between a stored update and its source, as Frobenius norms.

    Attributes:
        error: Upper bound of ‖B'·A' − scale·B·A·diag(m)‖.
        norm: ‖scale·B·A·diag(m)‖.
        allowed: What rounding every entry of A' and B' once can cause at most.
    """

    error: float
    norm: float
    allowed: float

    @property
    def relative(self) -> float:
        """Error over norm, 0 for an exact copy."""
        return self.error / self.norm if self.norm > 0 else float(self.error > 0)


def deviation(
    stored: tuple[Tensor, Tensor], source: LowRank, rounded: torch.dtype | None = None
) -> Deviation:
    """Compare stored factors with their source, in a dtype wider than theirs.

    With A* = 2^k·A·diag(m) and B* = scale·2^-k·B, which is exact for any k,

        B'·A' − scale·B·A·diag(m) = B'·(A' − A*) + (B' − B*)·A*,

    so nothing large cancels: two products of small differences, whose norms come from r × r Gram
    matrices. For an exact copy both vanish.

    Args:
        stored: A' and B', shaped like the source's factors.
        source: A, B, their scale and columns m.
        rounded: In which dtype they were once, if that was another one.
    """
    dtype = stored[0].dtype
    if source.bare and _same(stored[0], source.down) and _same(stored[1], source.up):
        return Deviation(0.0, 0.0, 0.0)
    wide = working(dtype)
    a, b = (t.to(wide).flatten(1) for t in stored)
    a_star = source.weighted(wide).flatten(1)
    b_star = source.up.to(wide).flatten(1) * source.scale
    # Factors may have been stored as they were, or balanced: the same k by the same rule.
    k = 0 if torch.equal(a, a_star) else balance(a_star, b_star, source.columns)
    found = _at(k, (a, b), (a_star, b_star), rounded or dtype)
    if k and found.error > found.allowed:  # as they were, and rounded by another tool
        found = min(found, _at(0, (a, b), (a_star, b_star), rounded or dtype))
    return found


def _at(
    k: int, stored: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Deviation:
    a_star, b_star = exact[0] * 2.0**k, exact[1] * 2.0**-k
    da, db = stored[0] - a_star, stored[1] - b_star
    error = _norm(stored[1], da) + _norm(db, a_star)
    if error == 0:
        return Deviation(0.0, 0.0, 0.0)
    return Deviation(error, _norm(b_star, a_star), _allowed(a_star, b_star, dtype))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _norm(up: Tensor, down: Tensor) -> float:
    """‖up·down‖ by the traces of Gram matrices: ‖BA‖² = Σ (BᵀB ∘ AAᵀ), in float32."""
    b, a = largest(up), largest(down)
    if not (a and b):
        return 0.0
    up, down = (up / b).float(), (down / a).float()
    return a * b * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def _allowed(a: Tensor, b: Tensor, dtype: torch.dtype) -> float:
    """Bound of the error when each entry x becomes x + d with |d| ≤ u·|x| + t.

    u is the dtype's unit roundoff, t half its smallest step near zero. The norm of a product is at
    most the sum over the rank of the norms of column times row.
    """
    info = torch.finfo(dtype)
    u, t = info.eps / 2, info.smallest_normal * info.eps / 2
    row, column = a.norm(dim=1), b.norm(dim=0)
    row_error = u * row + t * math.sqrt(a.shape[1])
    column_error = u * column + t * math.sqrt(b.shape[0])
    total = row_error * column + column_error * row + row_error * column_error
    return 1.001 * float(total.sum())
