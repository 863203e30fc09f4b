"""Column coefficients without back-propagation: one least-squares problem per layer.

ZipLoRA's objective (arXiv 2311.13600, eq. 3) asks that the whole network keeps what it painted.
Asked of each layer alone, for the inputs x that it got while painting, it is quadratic:

    E_c ‖ΔW_c diag(m_c − 1) x + ΔW_s diag(m_s) x‖² + E_s ‖ΔW_c diag(m_c) x + ΔW_s diag(m_s − 1) x‖²
    = mᵀ H m − 2 bᵀ m + constant,   m = (m_c, m_s),   Σ = Σ_c + Σ_s,
    H = [[G_cc ∘ Σ, G_cs ∘ Σ], [G_csᵀ ∘ Σ, G_ss ∘ Σ]],   G_cs = ΔW_cᵀ ΔW_s and so on,
    b = [(G_cc ∘ Σ_c + G_cs ∘ Σ_s) 1, (G_csᵀ ∘ Σ_c + G_ss ∘ Σ_s) 1].

A convolution sees patches; its coefficients are per channel, so its taps are summed (Eᵀ … E).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .quadratic import Quadratic, weigh

DIRECT_LIMIT = 6000
"""Most unknowns of a layer (2 · in) that are solved by Cholesky; more by conjugate gradients."""

STEPS, TOLERANCE = 2000, 1e-8
"""Where conjugate gradients stop, the latter relative and in the energy of the preconditioner."""


def solve(layer: Quadratic, *, lambda_: float, ridge: float) -> tuple[Tensor, Tensor]:
    """The coefficients with which a layer does best what each LoRA alone did in its place.

    Minimises the data term (see the module) + λ Σ_i w_i m_c,i m_s,i + ρ τ ‖m − 1‖², where
    τ = trace(H) / (2 · in) and w_i = min(τ, √(H_cc,ii H_ss,ii)): both parameters are free of
    units, and a column that no input reaches stays at 1.

    The second term is the similarity of the paper as long as the products are positive. It is
    not convex, so λ is limited to the largest power of two of which even the double leaves the
    problem convex: then there is a solution, and every direction keeps half of its curvature.
    What is at most ρ / 2 is never limited. Conjugate gradients look only along the directions
    they take, and may allow more.

    Args:
        layer: The two LoRAs' factors in a layer, and the moments of its inputs.
        lambda_: λ, weight of the similarity, not negative.
        ridge: ρ, how strongly columns with little input are held at 1.

    Returns:
        m_c and m_s, float32 `[in]` each.

    Raises:
        ValueError: Moments or factors hold NaN or Inf, or the data leave coefficients open and
            there is no ridge.
    """
    diagonal, target = layer.diagonal(), layer.target()
    tau = diagonal.mean()
    if not (tau.isfinite() and target.isfinite().all()):
        raise ValueError("the moments or the factors hold NaN or Inf")
    if tau == 0:
        m = torch.ones_like(target)
    else:
        weight = diagonal.prod(0).sqrt().clamp(max=tau)
        system = _System(layer, diagonal, ridge * tau, weight, target + ridge * tau)
        m = system.solve(lambda_)
    m_c, m_s = m.float().unbind()
    return m_c, m_s


def residual(layer: Quadratic, m_c: Tensor, m_s: Tensor) -> float:
    """The data term alone: the mean squared change of both sides' outputs, summed.

    Args:
        layer: As in `solve`.
        m_c: Coefficients of the content LoRA's columns, `[in]`.
        m_s: Those of the style LoRA's.
    """
    m = torch.stack([m_c, m_s]).to(layer.U)
    total = 0.0
    for side, sigma in enumerate((layer.sigma_c, layer.sigma_s)):
        off = m.clone()
        off[side] -= 1
        Z = layer.weighted(off)
        total += (Z * weigh(Z, sigma)).sum().item()
    return total


@dataclass(frozen=True, eq=False)
class _System:
    """(H + ρτ 1 + λ/2 [[0, w], [w, 0]]) m = b + ρτ 1, for a λ that is still to be found.

    Attributes:
        layer: Gives H.
        diagonal: Of H, `[2, in]`.
        pull: ρτ.
        weight: w, `[in]`.
        target: Right-hand side, `[2, in]`.
    """

    layer: Quadratic
    diagonal: Tensor
    pull: Tensor
    weight: Tensor
    target: Tensor

    def solve(self, lambda_: float) -> Tensor:
        """`[2, in]`.

        Raises:
            ValueError: Not even λ = 0 determines a solution.
        """
        direct = self.target.numel() <= DIRECT_LIMIT
        matrix = self._matrix() if direct else None
        for limit in _limits(lambda_):
            way = (limit, min(limit, lambda_))
            found = self._iterated(*way) if matrix is None else self._solved(matrix, *way)
            if found is not None:
                return found
        raise ValueError("the inputs do not determine the coefficients; use a larger ridge")

    def _matrix(self) -> Tensor:
        H = self.layer.dense()
        H.diagonal().add_(self.pull)
        return H

    def _solved(self, matrix: Tensor, limit: float, lambda_: float) -> Tensor | None:
        """By Cholesky; None if twice the limit is not convex."""
        factor, failed = torch.linalg.cholesky_ex(self._coupled(matrix, 2 * limit))
        if failed:
            return None
        if lambda_:
            factor = torch.linalg.cholesky(self._coupled(matrix, lambda_))
        return torch.cholesky_solve(self.target.reshape(-1, 1), factor).view_as(self.target)

    def _coupled(self, matrix: Tensor, lambda_: float) -> Tensor:
        width = len(self.weight)
        matrix = matrix.clone()
        for offset in (width, -width):
            matrix.diagonal(offset).add_(lambda_ / 2 * self.weight)
        return matrix

    def _iterated(self, limit: float, lambda_: float) -> Tensor | None:
        """By conjugate gradients; None if they see that twice the limit is not convex."""
        if limit and self._descend(2 * limit) is None:
            return None
        return self._descend(lambda_)

    def _descend(self, lambda_: float) -> Tensor | None:
        """From 1, preconditioned by the diagonal; None if the way shows that λ is not convex."""
        scale = (self.diagonal + self.pull).clamp(min=torch.finfo(torch.float64).tiny)
        m = torch.ones_like(self.target)
        r = self.target - self._times(m, lambda_)
        p = z = r / scale
        energy = (r * z).sum()
        enough = TOLERANCE**2 * (self.target**2 / scale).sum()
        for _ in range(STEPS):
            if energy <= enough:
                break
            q = self._times(p, lambda_)
            curvature = (p * q).sum()
            if curvature <= 0:
                return None
            step = energy / curvature
            m, r = m + step * p, r - step * q
            z = r / scale
            energy, before = (r * z).sum(), energy
            p = z + energy / before * p
        return m

    def _times(self, m: Tensor, lambda_: float) -> Tensor:
        similar = lambda_ / 2 * self.weight * m.flip(0)
        return self.layer.times(m) + self.pull * m + similar


def _limits(wanted: float) -> Iterator[float]:
    """Of λ: powers of two, from the one above what is wanted downwards; at last none at all."""
    if wanted:
        highest = min(math.ceil(math.log2(wanted)), 10)
        yield from (2.0**exponent for exponent in range(highest, -31, -1))
    yield 0.0
