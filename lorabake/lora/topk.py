"""How large an update is: the sum of its K largest entries and of all of them, exactly.

ΔW is never held: blocks of it are computed, scanned while they are still in the cache, and
forgotten. What earlier blocks had foretells about how large the K-th largest entry is, so that few
entries besides the K largest have to be kept. A wrong guess costs time, never exactness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .types import LowRank

_CACHED = 1280 * 1024  # bytes of a block that stays in the cache next to a core
_ON_DEVICE = 1 << 27  # bytes of a block on an accelerator, where launches cost more than memory
_AVERAGING = 256  # from so many entries on, their float32 rounding errors average out below 1e-7
_SAFE = (1e-25, 1e35)  # totals that tell that float32 has neither over- nor underflowed
_CANCELLED = 8  # how many times an entry's terms may outweigh it; errors of many average out


@dataclass(frozen=True)
class Magnitude:
    """Sums over the entries of |ΔW|, scale included.

    Attributes:
        top: Sum of the K largest (K-LoRA's S_c or S_s).
        total: Sum of all (the terms of gamma, eq. 9).
    """

    top: float
    total: float


def magnitude(layer: LowRank, k: int, device: torch.device | None = None) -> Magnitude:
    """Sum the `k` largest entries of |ΔW| and all of them (K-LoRA, arXiv 2502.18461, eqs. 3–6).

    Products are float32 where many entries are summed on the CPU and float64 elsewhere (small
    layers, small k, GPUs, values beyond float32's range, products whose terms nearly cancel), sums
    are float64: the relative error against dense float64 stays near 1e-8 and below 5e-8.
    Memory: one block, the factors, and about 2·k entries.

    Args:
        layer: Factors of any floating dtype, linear or convolutional.
        k: How many entries, at least 1; all of them if the layer has fewer.
        device: Where to compute; the CPU if None.
    """
    device = device or torch.device("cpu")
    rows, columns = layer.up.shape[0], layer.down[0].numel()
    precise = min(k, rows * columns) < _AVERAGING or rows * columns * 8 <= _CACHED
    if precise and device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    dtype = torch.float64 if precise or device.type == "cuda" else torch.float32
    B, A = _matrices(layer, device, dtype)
    top, total = _sums(B, A, k)
    if dtype == torch.float32 and not _sound(B, A, min(k, rows * columns), top, total):
        top, total = _sums(*_matrices(layer, torch.device("cpu"), torch.float64), k)
    return Magnitude(abs(layer.scale) * top, abs(layer.scale) * total)


def _matrices(layer: LowRank, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    B, A = (factor.detach().to(device, dtype).flatten(1) for factor in (layer.up, layer.down))
    return B, A


def _sound(B: Tensor, A: Tensor, k: int, top: float, total: float) -> bool:
    """Whether float32 was good enough for this sum of the k largest entries and this total.

    An entry Σ_r b_r·a_r is rounded in proportion to its terms, √Σ_r (b_r·a_r)², which is also its
    size if they have random signs. A row of entries has max_j |A_rj| or Σ_j |A_rj| for a_r: the
    first bounds the terms of each entry, the second tells about the sum of all terms. Where they
    are much larger than what was found, terms have cancelled and left their rounding errors; in
    a sum of k entries these weigh √k times less.
    """
    sizes = A.abs()
    norms = torch.stack([sizes.amax(1), sizes.sum(1)])
    terms = torch.mm(norms.square_(), B.square().T).sqrt_()  # the wide way is the faster one
    largest, all_terms = float(terms[0].max()), float(terms[1].sum())
    return (
        _SAFE[0] < total < _SAFE[1]
        and total < 2 * len(A) * all_terms  # always so, unless squares have underflowed
        and largest <= _CANCELLED * math.sqrt(k / _AVERAGING) * top / k
        and all_terms <= _CANCELLED * total
    )


def _sums(B: Tensor, A: Tensor, k: int) -> tuple[float, float]:
    """(top, total) of |B·A|."""
    size = B.shape[0] * A.shape[1]
    if k >= size:
        total = _sum(torch.cat([block.sum(1) for block in _blocks(B, A)]))
        return total, total
    top, total = _scan(B, A, k, guess=True)
    if top is None:
        top, total = _scan(B, A, k, guess=False)
    return top or 0.0, total


def _blocks(B: Tensor, A: Tensor) -> Iterator[Tensor]:
    """|B·A| in blocks of rows, each valid until the next one is asked for.

    Every block has its share of weak and of strong rows, the first one the fairest.
    """
    room = (_CACHED if B.device.type == "cpu" else _ON_DEVICE) // B.element_size()
    count = -(-len(B) // min(max(1, room // A.shape[1]), len(B)))
    buffer = B.new_empty(-(-len(B) // count), A.shape[1])
    order = np.argsort((B * B).sum(1).cpu().numpy())
    middle_first = sorted(range(count), key=lambda i: abs(2 * i - count + 1))
    shares = [order[i::count] for i in middle_first]
    dealt = B.index_select(0, torch.from_numpy(np.concatenate(shares)).to(B.device))
    for part in dealt.split([len(share) for share in shares]):
        yield torch.mm(part, A, out=buffer[: len(part)]).abs_()


def _scan(B: Tensor, A: Tensor, k: int, *, guess: bool) -> tuple[float | None, float]:
    """(top, total) of |B·A|; top is None if a guess has left fewer than `k` entries.

    Entries above a bound are kept, and the bound is raised on the way: to the k-th largest entry
    so far, or, with `guess`, to the one that will be about the k-th in the end if the rest is like
    what has been seen. What is kept is never below the bound and what is not kept never above it,
    so `k` kept entries have the `k` largest among them.
    """
    size, seen = len(B) * A.shape[1], 0
    kept: list[Tensor] = []
    count, bound, rows = 0, 0.0, list[Tensor]()
    for block in _blocks(B, A):
        if guess and not seen and block.numel() < size:
            bound = _foretell(block, k / size)
        seen += block.numel()
        rows.append(block.sum(1))
        kept.append(_above(block, bound))
        count += kept[-1].shape[0]  # len() of a tensor goes a long way round
        rank = min(k, _likely(k * seen / size)) if guess else k
        if count > rank + rank // 4 + 256:
            kept, count = [_largest(torch.cat(kept), rank)], rank
            bound = float(kept[0].min())
    top = None if bound > 0 and count < k else _sum(_largest(torch.cat(kept), k))
    return top, _sum(torch.cat(rows))


def _foretell(block: Tensor, share: float) -> float:
    """A bound that a little more than this share of entries like the block's exceed, or 0."""
    sample = block.view(-1)[:: 1 + block.numel() // 10_000]
    rank = _likely(share * len(sample))
    return float(_largest(sample, rank).min()) if rank < len(sample) else 0.0


def _likely(expected: float) -> int:
    """A rank that a random count with this mean hardly ever exceeds."""
    return math.ceil(expected + 3 * math.sqrt(expected) + 3)


def _sum(values: Tensor) -> float:
    return float(values.to("cpu", torch.float64).sum())


def _above(block: Tensor, bound: float) -> Tensor:
    """The entries of `block` that are greater than `bound`."""
    if block.device.type != "cpu":
        return block[block > bound]
    values = block.numpy()  # numpy compares and selects many times faster than torch on a CPU
    limit = values.dtype.type(bound)
    if values.size % 8 == 0:  # most groups of eight entries have none that is greater
        groups = values.reshape(8, -1)
        values = groups.take(np.flatnonzero(groups.max(0) > limit), axis=1)
    return torch.from_numpy(values[values > limit])


def _largest(values: Tensor, k: int) -> Tensor:
    """The `k` largest, in any order; all of them if there are fewer."""
    if len(values) <= k:
        return values
    if values.device.type != "cpu":
        return values.topk(k, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), len(values) - k)[-k:])
