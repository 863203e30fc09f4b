"""How large an update is: the sum of its K largest entries and of all of them, exactly.

ΔW is never held: blocks of it are computed, scanned while they are still in the cache, and
forgotten. A small sample tells beforehand about how large the K-th largest entry is, so that few
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

_CACHED = 160 * 1024  # entries of a block that, with its mask, fits into a core's L2 cache
_ON_DEVICE = 1 << 24  # entries of a block on an accelerator, where launches cost more than memory
_SAMPLE = 20 * 1024  # entries looked at for the guess
_AVERAGING = 256  # from so many entries on, their float32 rounding errors average out below 1e-7
_SAFE = (1e-25, 1e35)  # totals that tell that float32 has neither over- nor underflowed


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
    layers, small k, GPUs, values beyond float32's range), sums are float64: the relative error
    against dense float64 stays near 1e-8. Memory: one block, the factors, and about 2·k entries.

    Args:
        layer: Factors of any floating dtype, linear or convolutional.
        k: How many entries, at least 1; all of them if the layer has fewer.
        device: Where to compute; the CPU if None.
    """
    device = device or torch.device("cpu")
    rows, columns = layer.up.shape[0], layer.down[0].numel()
    precise = min(k, rows * columns) < _AVERAGING or rows * columns <= _CACHED
    if precise and device.type == "mps":  # which has no float64
        device = torch.device("cpu")
    dtype = torch.float64 if precise or device.type == "cuda" else torch.float32
    top, total = _sums(layer, k, device, dtype)
    if dtype == torch.float32 and not _SAFE[0] < total < _SAFE[1]:
        top, total = _sums(layer, k, torch.device("cpu"), torch.float64)
    return Magnitude(abs(layer.scale) * top, abs(layer.scale) * total)


def _sums(layer: LowRank, k: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(top, total) of |B·A| without the scale."""
    B = layer.up.detach().to(device, dtype).flatten(1)
    A = layer.down.detach().to(device, dtype).flatten(1)
    size = B.shape[0] * A.shape[1]
    if k >= size:
        total = _sum(torch.cat([block.sum(1) for block in _blocks(B, A)]))
        return total, total
    top, total = _scan(B, A, k, _guess(B, A, k))
    if top is None:
        top, total = _scan(B, A, k, 0.0)
    return top or 0.0, total


def _blocks(B: Tensor, A: Tensor) -> Iterator[Tensor]:
    """|B·A| in blocks of rows, each valid until the next one is asked for."""
    rows = min(max(1, _block_entries(B.device) // A.shape[1]), len(B))
    buffer = B.new_empty(rows, A.shape[1])
    for part in B.split(rows):
        yield torch.mm(part, A, out=buffer[: len(part)]).abs_()


def _block_entries(device: torch.device) -> int:
    return _CACHED if device.type == "cpu" else _ON_DEVICE


def _scan(B: Tensor, A: Tensor, k: int, bound: float) -> tuple[float | None, float]:
    """(top, total) of |B·A|; top is None if `bound` > 0 left fewer than `k` entries.

    Entries above `bound` are kept. Whenever twice as many as needed have come together, the
    largest `k` stay and the smallest of these is the new bound. Entries equal to it need not be
    kept, for `k` that are at least as large are there already; nor need zeros.
    """
    kept: list[Tensor] = []
    count, totals, guessed = 0, [], bound > 0
    for block in _blocks(B, A):
        totals.append(block.sum(1))
        kept.append(_above(block, bound))
        count += len(kept[-1])
        if count > 2 * k + _SAMPLE:
            kept, count = [_largest(torch.cat(kept), k)], k
            bound = float(kept[0].min())
    top = None if guessed and count < k else _sum(_largest(torch.cat(kept), k))
    return top, _sum(torch.cat(totals))


def _sum(values: Tensor) -> float:
    return float(values.to("cpu", torch.float64).sum())


def _above(block: Tensor, bound: float) -> Tensor:
    """The entries of `block` that are greater than `bound`."""
    if block.device.type != "cpu":
        return block[block > bound]
    values = block.numpy()  # numpy compares and selects many times faster than torch on a CPU
    return torch.from_numpy(values[values > values.dtype.type(bound)])


def _largest(values: Tensor, k: int) -> Tensor:
    """The `k` largest, in any order; all of them if there are fewer."""
    if len(values) <= k:
        return values
    if values.device.type != "cpu":
        return values.topk(k, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), len(values) - k)[-k:])


def _guess(B: Tensor, A: Tensor, k: int) -> float:
    """A bound that a little more than `k` entries of |B·A| probably exceed; 0 keeps all."""
    size = len(B) * A.shape[1]
    share = math.sqrt(_SAMPLE / size)
    if size <= _block_entries(B.device) or share > 0.5:
        return 0.0
    rows, columns = _spread((B * B).sum(1), share), _spread((A * A).sum(0), share)
    sample = torch.mm(B.index_select(0, rows), A.index_select(1, columns)).abs_().flatten()
    expected = k * len(sample) / size
    keep = math.ceil(expected + 3 * math.sqrt(expected) + 3)
    return float(_largest(sample, keep).min()) if keep < len(sample) else 0.0


def _spread(norms: Tensor, share: float) -> Tensor:
    """Indices of this share of the lines, from the weakest to the strongest in equal steps.

    Large entries crowd in few strong rows and columns; by chance alone a sample would have too
    many or too few of these.
    """
    count = math.ceil(share * len(norms))
    steps = (np.arange(count) + 0.5) * (len(norms) / count)
    order = np.argsort(norms.cpu().numpy())
    return torch.from_numpy(order[steps.astype(np.int64)]).to(norms.device)
