"""LoRA itself (arXiv 2106.09685), linear and convolutional: ΔW = B·A."""

from __future__ import annotations

from ..compress import compress
from ..types import LowRank
from .kind import Kind, Size, Tensors


def _size(of: Tensors) -> Size | None:
    down, up = of["down"], of["up"]
    fits = (
        up.shape[2:] == down.shape[2:]
        if down.ndim == 2
        else down.ndim == 4 and up.shape[2:] in ((), (1, 1))
    )
    if not fits or up.ndim < 2 or up.shape[1] != down.shape[0]:
        return None
    return Size((up.shape[0], *down.shape[1:]), down.shape[0], down.shape[0])


def _exact(of: Tensors) -> LowRank:
    down, up = of["down"], of["up"]
    return LowRank(down, up[:, :, None, None] if down.ndim > up.ndim else up)


KIND = Kind(
    name="LoRA",
    layouts=(frozenset({"down", "up"}),),
    needs="a down factor needs an up factor, and an alpha needs both",
    shapes="[rank, in] and [out, rank], or [rank, in, height, width] and [out, rank, 1, 1], with a "
    "rank of at least 1",
    size=_size,
    exact=_exact,
    nearest=lambda of, rank: compress(_exact(of), rank),
    plain=True,
)
