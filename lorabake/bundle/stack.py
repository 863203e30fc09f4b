"""Stacking: the factors of several LoRAs side by side in one, along the rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..lora.pairs import Pair
from ..lora.types import LowRank, along
from ..runtime.manifest import COEFFICIENT_ROWS
from .fold import fold


def uniform_ranks(pairs: Sequence[Pair]) -> dict[str, int]:
    """The one rank that every layer of a component gets: the largest sum in it.

    Several versions of diffusers mis-scale files of mixed rank, so there are none. Where a layer
    has column coefficients there are two more rows for them.
    """
    ranks: dict[str, int] = {}
    for pair in pairs:
        component = pair.name.component
        ranks[component] = max(ranks.get(component, 0), sum(pair.ranks))
    weighted = {pair.name.component for pair in pairs if pair.columns}
    return {
        component: rank + COEFFICIENT_ROWS * (component in weighted)
        for component, rank in ranks.items()
    }


def stack(
    sources: Sequence[LowRank | None], rank: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Stack factors so that up @ down = Σ ΔW: down = [A_c ; A_s ; 0], up = [B_c | B_s | 0].

    Column coefficients follow: down = [A_c ; A_s ; m_c ; m_s ; 0], beside zeros in up.

    Args:
        sources: In stacking order, None where a source lacks the layer; at least one is there.
        rank: Of the result, at least the sum of the sources' ranks, and two more for column
            coefficients; the rest is zeros.
        dtype: Of the result.

    Returns:
        `down` `[rank, in]` and `up` `[out, rank]`, or `[rank, in, kh, kw]` and
        `[out, rank, 1, 1]` for convolutions.

    Raises:
        OutputError: The values do not fit into `dtype`.
    """
    folded = [fold(source, dtype) for source in sources if source is not None]
    first_down, first_up = folded[0]
    down = torch.zeros(rank, *first_down.shape[1:], dtype=dtype)
    up = torch.zeros(first_up.shape[0], rank, *first_up.shape[2:], dtype=dtype)
    start = 0
    for a, b in folded:
        end = start + a.shape[0]
        down[start:end], up[:, start:end] = a, b
        start = end
    for row, source in enumerate(sources, start):
        if source is not None and source.columns is not None:
            down[row] = along(source.columns, down)
    return down, up


def strengthen(pairs: Sequence[Pair], strengths: tuple[float, float]) -> tuple[Pair, ...]:
    """The same layers with (content, style) strengths multiplied into their scales."""
    content, style = strengths
    return tuple(
        replace(
            pair,
            content=None if pair.content is None else pair.content.scaled(content),
            style=None if pair.style is None else pair.style.scaled(style),
        )
        for pair in pairs
    )
