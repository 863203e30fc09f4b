"""LoHa (FedPara, arXiv 2108.06098): ΔW = (A1·B1) ∘ (A2·B2), entry by entry.

Row o of the first product is a1_o·B1, so entry (o, i) of ΔW is (a1_o ⊗ a2_o)·(b1_i ⊗ b2_i): the
Kronecker products of the rows are factors of rank r1·r2. In Tucker form (prop. 3 of the paper)
each B is a core times a matrix.
"""

from __future__ import annotations

from torch import Tensor

from ..compress import compress, nearest
from ..suffixes import Slot
from ..types import LowRank
from .kind import Kind, Size, Tensors
from .tucker import folded


def _size(of: Tensors) -> Size | None:
    one, other = _half(of, "1"), _half(of, "2")
    if one is None or one[0] != (other or one)[0] or other is None:
        return None
    return Size(one[0], one[1] * other[1], one[1])


def _half(of: Tensors, which: str) -> tuple[tuple[int, ...], int] | None:
    """Shape and rank of one of the two products."""
    a, b, core = _tensors(of, which)
    if a.ndim != 2 or b.ndim != 2:
        return None
    if core is None:
        return ((a.shape[0], b.shape[1]), b.shape[0]) if a.shape[1] == b.shape[0] else None
    if core.ndim != 4 or core.shape[:2] != (a.shape[0], b.shape[0]):
        return None
    return (a.shape[1], b.shape[1], *core.shape[2:]), b.shape[0]


def _tensors(of: Tensors, which: str) -> tuple[Tensor, Tensor, Tensor | None]:
    if which == "1":
        return of["hada_w1_a"], of["hada_w1_b"], of.get("hada_t1")
    return of["hada_w2_a"], of["hada_w2_b"], of.get("hada_t2")


def _factors(of: Tensors, which: str) -> tuple[Tensor, Tensor]:
    """One of the two products as `[out, r]` and `[r, in]`, or `[r, in, kh, kw]`, in float32."""
    a, b, core = _tensors(of, which)
    return (a.float(), b.float()) if core is None else (a.T.float(), folded(core, b))


def _exact(of: Tensors) -> LowRank:
    (up, down), (up2, down2) = _factors(of, "1"), _factors(of, "2")
    rows = (up[:, :, None] * up2[:, None, :]).flatten(1)
    columns = (down[:, None] * down2[None, :]).flatten(0, 1)
    return LowRank(columns, rows[:, :, None, None] if down.ndim == 4 else rows)


def _nearest(of: Tensors, rank: int) -> tuple[LowRank, float]:
    (up, down), (up2, down2) = _factors(of, "1"), _factors(of, "2")
    width = down[0].numel()
    if up.shape[1] * up2.shape[1] < min(up.shape[0], width):
        return compress(_exact(of), rank)
    one, other = (a.double() @ b.double().flatten(1) for a, b in ((up, down), (up2, down2)))
    return nearest((one * other).reshape(up.shape[0], *down.shape[1:]), rank)


_WHOLE: frozenset[Slot] = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_CORES: frozenset[Slot] = frozenset({"hada_t1", "hada_t2"})

KIND = Kind(
    name="LoHa",
    layouts=(_WHOLE, _WHOLE | _CORES),
    needs="LoHa needs hada_w1_a, hada_w1_b, hada_w2_a and hada_w2_b, and both or none of hada_t1 "
    "and hada_t2",
    shapes="[out, rank] for hada_w…_a and [rank, in] for hada_w…_b, or with cores "
    "[rank, rank, height, width] the former the other way round",
    size=_size,
    exact=_exact,
    nearest=_nearest,
)
