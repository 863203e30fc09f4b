"""Folding a scale into low-rank factors without losing more than one rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from ..errors import OutputError
from ..lora.types import LowRank
from ..runtime.manifest import MIN_COEFFICIENT

_SAFE = -12
"""Exponent of a factor's largest entry from which on float16's fixed steps near 0 do not show."""


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The storage dtype that holds all of these: float16 + bfloat16 → float32.

    Loaders take neither 8-bit nor 64-bit LoRA files: values of 8 bits are exact in any wider
    dtype and become float16 if they are alone, float64 becomes float32.

    Args:
        dtypes: Floating-point dtypes.
    """
    wide = {d for d in dtypes if d.itemsize > 1} or {torch.float16}
    result = reduce(torch.promote_types, wide)
    return torch.float32 if result == torch.float64 else result


def fold(factors: LowRank, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors (A', B') in `dtype` with B'·A' = scale · B·A·diag(m) and no scale left.

    The power of two in the scale is split as `balance` says, which is exact; the rest of the
    scale goes into B and the columns m into A, in a wider dtype, and each is rounded once.
    Factors that need neither these nor another dtype are handed on as they are.

    Args:
        factors: One layer of one LoRA.
        dtype: Of the result.

    Returns:
        `down` and `up`, shaped like the factors.

    Raises:
        OutputError: The values are too large or too small for `dtype`.
    """
    down, up, wide = factors.down, factors.up, working(dtype)
    if factors.bare and down.dtype == up.dtype == dtype:
        return down, up
    down, up = factors.weighted(wide), up.to(wide) * factors.scale
    shift = balance(down, up, factors.columns)
    down, up = (down * 2.0**shift).to(dtype), (up * 2.0**-shift).to(dtype)
    _check_range(factors, (down, up), dtype)
    return down, up


def _check_range(factors: LowRank, folded: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """Refuse overflow, and underflow so deep that rounding would change the update visibly."""
    sizes = [largest(tensor) for tensor in folded]
    large = not all(map(math.isfinite, sizes))
    small = min(sizes) < torch.finfo(dtype).smallest_normal
    if large or (small and not _is_zero(factors)):
        raise OutputError(
            f"LoRA factors times their scale {factors.scale:g} are too "
            f"{'large' if large else 'small'} for {str(dtype).removeprefix('torch.')}",
            advice="Check that the training did not diverge and that the strength is sensible"
            if dtype == torch.float32
            else "Store the bundle as float32 (--dtype float32)",
        )


def _is_zero(factors: LowRank) -> bool:
    return factors.scale == 0 or min(largest(factors.down), largest(factors.up)) == 0


def working(dtype: torch.dtype) -> torch.dtype:
    """A dtype in which a product is good for one rounding to `dtype`."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def balance(down: Tensor, up: Tensor, columns: Tensor | None = None) -> int:
    """The exponent k for which the largest entries of down·2^k and up·2^-k are nearest.

    That keeps both away from the ends of float16's range. Where `down` is A·diag(columns), its
    smallest columns count, so that A can be had back from them; but B keeps its precision, without
    which no column would have any.
    """
    a, b = largest(down), largest(up)
    if not (0 < a < math.inf and 0 < b < math.inf):
        return 0
    even = round((math.log2(b) - math.log2(a)) / 2)
    if columns is None:
        return even
    low, high = (max(float(m), MIN_COEFFICIENT) for m in torch.aminmax(columns.abs()))
    spare = math.floor(math.log2(b)) - even - _SAFE
    return even + max(0, min(round(math.log2(high / low) / 2), spare))


def largest(tensor: Tensor) -> float:
    """The largest magnitude; not finite if an entry is not."""
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))
