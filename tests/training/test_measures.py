"""The report's figures against dense updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorabake.lora.types import LowRank
from lorabake.training.measures import summary

Layers = list[tuple[LowRank, LowRank]]


def layers() -> tuple[Layers, list[tuple[Tensor, Tensor]]]:
    """A linear layer and a convolution."""
    dice = torch.Generator().manual_seed(0)

    def factors(rank: int, width: int, *kernel: int) -> LowRank:
        up = torch.randn(5, rank, *(1 for _ in kernel), generator=dice)
        return LowRank(torch.randn(rank, width, *kernel, generator=dice), up, 0.5 * rank)

    pairs = [(factors(2, 7), factors(3, 7)), (factors(1, 4, 3, 3), factors(2, 4, 3, 3))]
    m = [(torch.randn(w, generator=dice), torch.randn(w, generator=dice)) for w in (7, 4)]
    return pairs, m


def overlap(pair: tuple[LowRank, LowRank], m: tuple[Tensor, Tensor]) -> float:
    columns: list[Tensor] = []
    for factors, weights in zip(pair, m, strict=True):
        delta = factors.delta(torch.float64).transpose(0, 1).flatten(1)
        columns.append(delta * weights.double()[:, None])
    dots = [abs(float(a @ b)) for a, b in zip(*columns, strict=True)]
    return sum(dots) / float(columns[0].norm() * columns[1].norm())


def test_summary() -> None:
    pairs, m = layers()
    found = summary(pairs, m)
    ones = [(torch.ones_like(c), torch.ones_like(s)) for c, s in m]
    for key, weights in (("column_cosine_before", ones), ("column_cosine_after", m)):
        wanted = sum(map(overlap, pairs, weights)) / 2
        assert found[key] == pytest.approx(wanted, rel=1e-6)
    assert found["coefficients"] == 22
    values = torch.cat([x for both in m for x in both])
    assert found["movement"] == pytest.approx(float((values - 1).abs().mean()), rel=1e-6)
    products = torch.cat([(c * s).abs() for c, s in m])
    assert found["product_before"] == 1
    assert found["product_after"] == pytest.approx(float(products.mean()), rel=1e-6)
