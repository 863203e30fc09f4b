"""Folding a scale into low-rank factors without losing more than one rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from ..errors import OutputError
from ..lora.types import LowRank


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
    """Factors (A', B') in `dtype` with B'·A' = scale · B·A and no scale left.

    The power of two in the scale is split so that the largest entries of A' and B' are about
    equal, which is exact and keeps both away from the ends of float16's range; the rest of the
    scale goes into B in a wider dtype and is rounded once. Factors that need neither a scale nor
    another dtype are handed on as they are.

    Args:
        factors: One layer of one LoRA.
        dtype: Of the result.

    Returns:
        `down` and `up`, shaped like the factors.

    Raises:
        OutputError: The values are too large or too small for `dtype`.
    """
    down, up, scale = factors.down, factors.up, factors.scale
    if scale == 1.0 and down.dtype == up.dtype == dtype:
        return down, up
    down, up = down.to(working(dtype)), up.to(working(dtype)) * scale
    shift = balance(down, up)
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


def balance(down: Tensor, up: Tensor) -> int:
    """The exponent k for which the largest entries of down·2^k and up·2^-k are nearest."""
    a, b = largest(down), largest(up)
    if not (0 < a < math.inf and 0 < b < math.inf):
        return 0
    return round((math.log2(b) - math.log2(a)) / 2)


def largest(tensor: Tensor) -> float:
    """The largest magnitude; not finite if an entry is not."""
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))
