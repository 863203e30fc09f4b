"""Column coefficients (ZipLoRA, arXiv 2311.13600) as a bundle stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import OutputError
from ..lora.pairs import Pair
from ..lora.types import LowRank
from ..runtime.manifest import MIN_COEFFICIENT


def with_columns(
    pairs: Sequence[Pair],
    coefficients: Sequence[tuple[Tensor, Tensor] | None],
    dtype: torch.dtype,
) -> tuple[Pair, ...]:
    """The same layers with column coefficients, already as the file will hold them.

    They are rounded to `dtype`, and what is then smaller than 2^-10 becomes ±2^-10 (0 becomes
    2^-10), so that the file's coefficients and its ΔW agree.

    Args:
        pairs: What the bundle stacks.
        coefficients: For each pair (m_c, m_s), float32 `[in]` on the CPU, or None to leave the
            pair as it is.
        dtype: Of the bundle.

    Raises:
        ValueError: There are some for a layer that only one LoRA has, or of another shape.
        OutputError: One is not finite, or too large for `dtype`.
    """
    return tuple(
        pair
        if both is None
        else replace(
            pair,
            content=_weighted(pair, pair.content, both[0], dtype),
            style=_weighted(pair, pair.style, both[1], dtype),
        )
        for pair, both in zip(pairs, coefficients, strict=True)
    )


def _weighted(pair: Pair, source: LowRank | None, m: Tensor, dtype: torch.dtype) -> LowRank:
    if source is None:
        raise ValueError(f"{pair.name}: only one LoRA has this layer, so it takes no coefficients")
    if m.shape != source.shape[1:2]:
        raise ValueError(f"{pair.name}: coefficients {list(m.shape)} for ΔW {list(source.shape)}")
    columns = stored(m, dtype)
    if not columns.isfinite().all():
        raise OutputError(
            f"column coefficients are not finite as {str(dtype).removeprefix('torch.')}",
            where=str(pair.name),
            advice="Check that the training did not diverge",
        )
    return replace(source, columns=columns)


def stored(m: Tensor, dtype: torch.dtype) -> Tensor:
    """Coefficients rounded to `dtype` and kept away from 0, as float32."""
    rounded = m.to(dtype).float()
    least = torch.where(m < 0, -MIN_COEFFICIENT, MIN_COEFFICIENT)
    return torch.where(rounded.abs() < MIN_COEFFICIENT, least, rounded)
