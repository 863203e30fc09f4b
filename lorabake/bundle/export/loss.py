"""What a static LoRA loses of a plan that changes, without a dense ΔW."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...lora.types import LowRank
from .shares import Gates, Shares, mean


class Loss(NamedTuple):
    """Squared Frobenius norms.

    Attributes:
        error: ‖difference‖².
        norm: ‖ΔW‖², of what it is a difference from.
    """

    error: float
    norm: float

    @property
    def relative(self) -> float:
        """‖difference‖ / ‖ΔW‖; 0 where there is no difference."""
        return (self.error / self.norm) ** 0.5 if self.error > 0 else 0.0


def total(losses: Iterable[Loss]) -> Loss:
    """Of several layers together: squares add up."""
    found = [*losses]
    return Loss(sum(one.error for one in found), sum(one.norm for one in found))


def gram(sources: Sequence[LowRank]) -> Tensor:
    """Inner products of the sources' updates, float64 `[n, n]`.

    ⟨B_i·A_i, B_j·A_j⟩ = Σ (B_iᵀ·B_j ∘ A_i·A_jᵀ), over the entries of rank × rank matrices.
    """
    downs = [source.down.double().flatten(1) for source in sources]
    ups = [source.up.double().flatten(1) * source.scale for source in sources]
    products = [
        ((one.T @ other) * (a @ b.T)).sum()
        for one, a in zip(ups, downs, strict=True)
        for other, b in zip(ups, downs, strict=True)
    ]
    return torch.stack(products).reshape(len(sources), len(sources))


def over_time(products: Tensor, of: Shares) -> Loss:
    """How far a plan is from its mean: mean_p ‖ΔW(p) − ΔW̄‖² and mean_p ‖ΔW(p)‖².

    ΔW(p) = Σ_i g_i(p)·ΔW_i, and ΔW̄ is its mean over time, the nearest that a static LoRA can be.

    Args:
        products: Of the layer's sources, as `gram` gives them.
        of: Gates of these sources, and for which share of the time they hold.
    """
    centre = mean(of)
    error = norm = 0.0
    for at, share in of.items():
        away = tuple(g - c for g, c in zip(at, centre, strict=True))
        error += float(share) * squared(products, away)
        norm += float(share) * squared(products, at)
    return Loss(error if len(of) > 1 else 0.0, norm)


def squared(products: Tensor, gates: Gates) -> float:
    """‖Σ_i g_i·ΔW_i‖²."""
    g = torch.tensor(gates, dtype=torch.float64)
    return max(0.0, float(g @ products @ g))
