"""A layer's deviation from both LoRAs as a quadratic form of its coefficients, low-rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..lora.types import LowRank

_CHUNK = 1 << 23
"""Numbers of a slice of the moments that is copied to float64 at once."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Both updates in an orthonormal basis of their outputs, which changes no length.

    Attributes:
        U: float64 `[2, q, in, taps]`, ΔW_c and ΔW_s but for that basis, q ≤ sum of the ranks.
        sigma_c: Moments of the inputs, `[in · taps, in · taps]`.
        sigma_s: The same under the style prompt.
    """

    U: Tensor
    sigma_c: Tensor
    sigma_s: Tensor

    @classmethod
    def of(cls, content: LowRank, style: LowRank, sigma_c: Tensor, sigma_s: Tensor) -> Quadratic:
        """Of two LoRAs' factors in one layer, for the same weight.

        Args:
            content: Factors of the content LoRA.
            style: Those of the style LoRA.
            sigma_c: E[x xᵀ] under the content prompt, `[in, in]`, finite and symmetric; for
                convolutions of patches in the order of `torch.nn.functional.unfold`,
                `[in · kh · kw, in · kh · kw]`. Where it lies, all is computed, in float64.
            sigma_s: The same under the style prompt.
        """
        A, B = zip(*(_factors(side, sigma_c.device) for side in (content, style)), strict=True)
        R = torch.linalg.qr(torch.cat(B, 1), mode="r").R.split([len(a) for a in A], 1)
        rows = [
            (r @ a.flatten(1)).unflatten(1, (a.shape[1], -1)) for r, a in zip(R, A, strict=True)
        ]
        return cls(torch.stack(rows), sigma_c, sigma_s)

    def weighted(self, m: Tensor) -> Tensor:
        """ΔW_c diag(m_c) + ΔW_s diag(m_s) in the basis, `[q, in · taps]`."""
        return torch.einsum("nqit,ni->qit", self.U, m).flatten(1)

    def gather(self, Z: Tensor) -> Tensor:
        """Sums of Z, `[q, in · taps]`, times either update, by channel: `[2, in]`."""
        return torch.einsum("nqit,qit->ni", self.U, Z.view(self.U.shape[1:]))

    def times(self, m: Tensor) -> Tensor:
        """H m, `[2, in]`, without H."""
        return self.gather(weigh(self.weighted(m), self.sigma))

    @cached_property
    def sigma(self) -> Tensor:
        """Σ in float64, worth its memory where it is multiplied hundreds of times."""
        return self.sigma_c.to(torch.float64, copy=True).add_(self.sigma_s)

    def target(self) -> Tensor:
        """The right-hand side b, `[2, in]`."""
        U_c, U_s = self.U.flatten(2)
        return self.gather(weigh(U_c, self.sigma_c) + weigh(U_s, self.sigma_s))

    def diagonal(self) -> Tensor:
        """That of H, `[2, in]`."""
        width, taps = self.U.shape[2:]
        grams = torch.einsum("nqit,nqiu->nitu", self.U, self.U)
        blocks = [
            sigma.view(width, taps, width, taps).diagonal(dim1=0, dim2=2).double()
            for sigma in (self.sigma_c, self.sigma_s)
        ]
        return torch.einsum("nitu,tui->ni", grams, blocks[0] + blocks[1])

    def dense(self) -> Tensor:
        """H, `[2 · in, 2 · in]`; of the larger Grams by tap never more than a slice."""
        width, taps = self.U.shape[2:]
        U = self.U.flatten(2)
        H = U.new_empty(2, width, 2, width)
        step = max(1, _CHUNK // (width * taps * taps))
        for i in range(0, width, step):
            rows = slice(i * taps, (i + step) * taps)
            sigma = self.sigma_c[rows].double() + self.sigma_s[rows].double()
            for a in range(2):
                for b in range(2):
                    block = (U[a, :, rows].mT @ U[b]) * sigma
                    block = block.view(-1, taps, width, taps).sum((1, 3))
                    H[a, i : i + step, b] = block
        return H.view(2 * width, 2 * width)


def _factors(side: LowRank, device: torch.device) -> tuple[Tensor, Tensor]:
    """A as `[rank, in, …]` and scale · B as `[out, rank]`."""
    down, up = (factor.detach().to(device, torch.float64) for factor in (side.down, side.up))
    return down, side.scale * up.flatten(1)


def weigh(Z: Tensor, sigma: Tensor) -> Tensor:
    """Z Σ in float64, with a float64 copy of no more than slices of Σ."""
    step = max(1, _CHUNK // len(sigma))
    return torch.cat([Z @ rows.double() for rows in sigma.mT.split(step, 1)], 1)
