"""How far each of two LoRAs moves a layer's features, compared token by token.

d_i is what tells F_i = F + Δ_i from the base output F, Δ_i = B_i·A_i·x; only d_c − d_s matters, so
what both have in common is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log

import torch
from torch import Tensor
from torch.linalg import vecdot
from torch.nn import functional

from .selection import Criterion

Formula = Callable[[Tensor, Tensor, int], Tensor]
Measure = Callable[[Tensor, Tensor, Tensor, int], Tensor]

_TAME = 10.0
"""Spread of Δ over channels up to which e^Δ is far from overflow."""


def differences(
    F: Tensor, content: Tensor, style: Tensor, criterion: Criterion, temperature: float, dim: int
) -> Tensor:
    """d_c − d_s of every token (arXiv 2602.15539; axis and temperature are our choice).

    Args:
        F: Base output, W0·x and bias; any dtype, computed with in float32 or wider.
        content: Δ_c, of the same shape.
        style: Δ_s, of the same shape.
        criterion: See `Selection`.
        temperature: Of the softmax; `cosine` and `dot` know none.
        dim: Where the channels are.

    Returns:
        Of the inputs' shape without the channels.
    """
    wide = torch.promote_types(F.dtype, torch.float32)
    unit = temperature if criterion in ("kl", "js") else 1.0
    of_base, of_content, of_style = (
        x.to(wide) if unit == 1 else x.to(wide) / unit for x in (F, content, style)
    )
    return _CRITERIA[criterion](of_base, of_content, of_style, dim)


def _divergence(near: Formula, far: Formula) -> Measure:
    """A divergence D(p_i, p_0) of softmaxes, from two formulas.

    `near` is told Δ less its mean under p_0 and is exact to the last digits of D however small it
    is; it overflows where Δ spreads widely, and there `far` is as good.
    """

    def difference(F: Tensor, content: Tensor, style: Tensor, dim: int) -> Tensor:
        p0 = functional.softmax(F, dim)
        moves = [delta - vecdot(p0, delta, dim=dim).unsqueeze(dim) for delta in (content, style)]
        found = near(p0, moves[0], dim) - near(p0, moves[1], dim)
        if F.device.type == "cpu" and not torch.compiler.is_compiling() and _tame(moves):
            return found
        spreads = [v.amax(dim) - v.amin(dim) for v in moves]
        tame = torch.maximum(*spreads) <= _TAME
        return torch.where(tame, found, far(F, content, dim) - far(F, style, dim))

    return difference


def _tame(moves: Iterable[Tensor]) -> bool:
    """Whether no token's move can spread too widely."""
    return all(float(high - low) <= _TAME for low, high in (v.aminmax() for v in moves))


def _kl_near(p0: Tensor, v: Tensor, dim: int) -> Tensor:
    """KL(p_i ‖ p_0) = E_pi[v] − log E_p0[e^v], p_i = p_0·e^v / E_p0[e^v]; E_p0[v] is 0."""
    w = torch.expm1(v).mul_(p0)
    beyond = w.sum(dim)
    return vecdot(w, v, dim=dim) / (1 + beyond) - torch.log1p(beyond)


def _kl_far(F: Tensor, delta: Tensor, dim: int) -> Tensor:
    """KL(p_i ‖ p_0) = E_pi[Δ] − lse(F + Δ) + lse(F), the last of which is in both."""
    moved = F - F.amax(dim, keepdim=True)
    p = functional.softmax(moved + delta, dim)
    return vecdot(p, delta, dim=dim) - (moved + delta).logsumexp(dim)


def _js_near(p0: Tensor, v: Tensor, dim: int) -> Tensor:
    """JS(p_i, p_0) = ½·Σ p_0·[e^r·(r − h) − h], r = log(p_i / p_0), h = log((1 + e^r) / 2)."""
    r = v - torch.log1p(vecdot(p0, torch.expm1(v), dim=dim)).unsqueeze(dim)
    half = torch.log1p(2 * torch.sinh(r / 4).square())  # h − r/2 = log cosh(r/2)
    return vecdot(p0, r / 2 * torch.expm1(r) - half * (r.exp() + 1), dim=dim) / 2


def _js_far(F: Tensor, delta: Tensor, dim: int) -> Tensor:
    """JS(p_i, p_0) = ½·E_pi[r − h] − ½·E_p0[h], with r and h as above."""
    log_p0 = functional.log_softmax(F, dim)
    r = delta - (log_p0 + delta).logsumexp(dim, keepdim=True)
    h = functional.softplus(r) - log(2)
    return (vecdot((log_p0 + r).exp(), r - h, dim=dim) - vecdot(log_p0.exp(), h, dim=dim)) / 2


def _cosine(F: Tensor, content: Tensor, style: Tensor, dim: int) -> Tensor:
    """1 − cos(F_i, F) = ½·|F_i/|F_i| − F/|F||²."""
    base = functional.normalize(F, dim=dim)
    c, s = (functional.normalize(F + delta, dim=dim) - base for delta in (content, style))
    return (vecdot(c, c, dim=dim) - vecdot(s, s, dim=dim)) / 2


def _dot(F: Tensor, content: Tensor, style: Tensor, dim: int) -> Tensor:
    """−⟨F_i, F⟩ = −⟨F, F⟩ − ⟨Δ_i, F⟩."""
    return vecdot(style - content, F, dim=dim)


_CRITERIA: dict[Criterion, Measure] = {
    "kl": _divergence(_kl_near, _kl_far),
    "js": _divergence(_js_near, _js_far),
    "cosine": _cosine,
    "dot": _dot,
}
