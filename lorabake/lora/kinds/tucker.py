"""LoRA of a convolution in Tucker form, "LoCon with CP": 1×1 down, k×k core, 1×1 up."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compress import compress
from ..types import LowRank
from .kind import Kind, Size, Tensors


def folded(core: Tensor, inner: Tensor) -> Tensor:
    """The core times the matrix on its input side: `[r, q, kh, kw]` · `[q, in]` in float32."""
    return torch.einsum("rqhw,qi->rihw", core.double(), inner.double()).float()


def _size(of: Tensors) -> Size | None:
    down, up, mid = of["down"], of["up"], of["mid"]
    flat = all(t.ndim == 2 or (t.ndim == 4 and t.shape[2:] == (1, 1)) for t in (down, up))
    rank = down.shape[0] if flat else 0
    if mid.ndim != 4 or not flat or {*mid.shape[:2], up.shape[1]} != {rank}:
        return None
    return Size((up.shape[0], down.shape[1], *mid.shape[2:]), rank, rank)


def _exact(of: Tensors) -> LowRank:
    up = of["up"].flatten(1)[:, :, None, None]
    return LowRank(folded(of["mid"], of["down"].flatten(1)), up.float())


KIND = Kind(
    name="Tucker",
    layouts=(frozenset({"down", "up", "mid"}),),
    needs="lora_mid needs a down and an up factor",
    shapes="[rank, in, 1, 1], [rank, rank, height, width] and [out, rank, 1, 1]",
    size=_size,
    exact=_exact,
    nearest=lambda of, rank: compress(_exact(of), rank),
)
