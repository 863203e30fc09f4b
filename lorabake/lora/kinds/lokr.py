"""LoKr (LyCORIS, arXiv 2309.14859): ΔW = W1 ⊗ W2, each whole or itself a product.

(U1·D1) ⊗ (U2·D2) = (U1 ⊗ U2)·(D1 ⊗ D2), and the singular values of W1 ⊗ W2 are the products of
those of W1 and W2: the nearest update of a lower rank needs no large matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compress import decomposed
from ..suffixes import Slot
from ..types import LowRank
from .kind import Kind, Size, Tensors
from .tucker import folded


def _size(of: Tensors) -> Size | None:
    first, second = _first(of), _second(of)
    if first is None or second is None:
        return None
    (a, c), r1, divisor1 = first
    (b, d, *kernel), r2, divisor2 = second
    if divisor1 and divisor2 and divisor1 != divisor2:
        return None
    return Size((a * b, c * d, *kernel), r1 * r2, divisor2 or divisor1)


def _first(of: Tensors) -> tuple[tuple[int, ...], int, int | None] | None:
    """Shape of W1, the rank of its factors, and the rank that alpha is divided by, if any."""
    if "lokr_w1" not in of:
        return _product(of["lokr_w1_a"], of["lokr_w1_b"])
    whole = of["lokr_w1"]
    return (tuple(whole.shape), min(whole.shape), None) if whole.ndim == 2 else None


def _second(of: Tensors) -> tuple[tuple[int, ...], int, int | None] | None:
    """Likewise of W2, which has a kernel in convolutions."""
    if "lokr_w2" in of:
        whole = of["lokr_w2"]
        if whole.ndim not in (2, 4):
            return None
        return tuple(whole.shape), min(whole.shape[0], whole[0].numel()), None
    a, b, core = of["lokr_w2_a"], of["lokr_w2_b"], of.get("lokr_t2")
    if core is None:
        return _product(a, b)
    if not (a.ndim == b.ndim == 2 and core.ndim == 4):
        return None
    if core.shape[:2] != (a.shape[0], b.shape[0]):
        return None
    return (a.shape[1], b.shape[1], *core.shape[2:]), a.shape[0], b.shape[0]


def _product(a: Tensor, b: Tensor) -> tuple[tuple[int, ...], int, int | None] | None:
    if not (a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0]):
        return None
    return (a.shape[0], b.shape[1]), a.shape[1], a.shape[1]


def _factors(of: Tensors) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(U1, D1), (U2, D2) as matrices in float32; a kernel belongs to the columns of D2."""
    if "lokr_w1" in of:
        one = _halves(of["lokr_w1"].float())
    else:
        one = of["lokr_w1_a"].float(), of["lokr_w1_b"].float()
    if "lokr_w2" in of:
        return one, _halves(of["lokr_w2"].float().flatten(1))
    a, b, core = of["lokr_w2_a"].float(), of["lokr_w2_b"].float(), of.get("lokr_t2")
    return one, (a, b) if core is None else (a.T.contiguous(), folded(core, b).flatten(1))


def _halves(whole: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as a product, of which one factor is the identity on its shorter side."""
    rows, columns = whole.shape
    return (torch.eye(rows), whole) if rows <= columns else (whole, torch.eye(columns))


def _exact(of: Tensors) -> LowRank:
    (up1, down1), (up2, down2) = _factors(of)
    return _shaped(torch.kron(up1, up2), torch.kron(down1, down2), of)


def _shaped(up: Tensor, down: Tensor, of: Tensors) -> LowRank:
    size = _size(of)
    if size is None or len(size.shape) == 2:
        return LowRank(down, up)
    return LowRank(down.reshape(-1, *size.shape[1:]), up[:, :, None, None])


def _nearest(of: Tensors, rank: int) -> tuple[LowRank, float]:
    (u1, s1, v1), (u2, s2, v2) = (decomposed(u.double(), d.double()) for u, d in _factors(of))
    spectrum = torch.outer(s1, s2).flatten()
    chosen = torch.argsort(spectrum, descending=True, stable=True)[:rank]
    i, j = chosen // len(s2), chosen % len(s2)
    root = spectrum[chosen].sqrt()
    up = (u1[:, None, i] * u2[None, :, j]).flatten(0, 1) * root
    down = (v1[i, :, None] * v2[j, None, :]).flatten(1) * root[:, None]
    lost = torch.index_fill(spectrum, 0, chosen, 0.0)
    total = float(spectrum.norm())
    return _shaped(up.float(), down.float(), of), float(lost.norm()) / total if total else 0.0


_FIRST: tuple[frozenset[Slot], ...] = (
    frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}),
)  # fmt: skip
_SECOND: tuple[frozenset[Slot], ...] = (
    frozenset({"lokr_w2"}), frozenset({"lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
)  # fmt: skip

KIND = Kind(
    name="LoKr",
    layouts=tuple(first | second for first in _FIRST for second in _SECOND),
    needs="LoKr needs lokr_w1, or lokr_w1_a and lokr_w1_b, and likewise lokr_w2, with lokr_t2 only "
    "beside the latter two",
    shapes="[a, c] for lokr_w1, [b, d] or [b, d, height, width] for lokr_w2, and factors of these "
    "of one and the same rank",
    size=_size,
    exact=_exact,
    nearest=_nearest,
)
