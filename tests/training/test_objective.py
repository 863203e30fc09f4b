"""The terms of eq. 3 against loops over layers, and the coefficients' leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorabake.training.coefficients import Coefficients
from lorabake.training.objective import SIMILARITIES, Similarity, distance

WIDTHS = [3, 1, 5]


def coefficients() -> Coefficients:
    found = Coefficients(WIDTHS, torch.device("cpu"), torch.float64)
    dice = torch.Generator().manual_seed(0)
    found.load(torch.randn(2, sum(WIDTHS), generator=dice, dtype=torch.float64))
    return found


def naive(term: Similarity, layers: list[tuple[Tensor, Tensor]]) -> float:
    found: list[float] = []
    for m_c, m_s in ((c.detach(), s.detach()) for c, s in layers):
        products = [float(a) * float(b) for a, b in zip(m_c, m_s, strict=True)]
        sizes = [sum(float(x) ** 2 for x in m) ** 0.5 for m in (m_c, m_s)]
        found.append(
            {
                "paper": abs(sum(products)),
                "mean": sum(map(abs, products)) / len(products),
                "cosine": abs(sum(products)) / (sizes[0] * sizes[1]) / len(layers),
            }[term]
        )
    return sum(found)


@pytest.mark.parametrize("term", ["paper", "mean", "cosine"])
def test_similarity_terms(term: Similarity) -> None:
    m = coefficients()
    found = float(SIMILARITIES[term](m.flat.detach(), m.layer))
    assert found == pytest.approx(naive(term, m.layers), rel=1e-12)


def test_cosine_is_indifferent_to_size_and_the_others_are_not() -> None:
    m = coefficients()
    flat = m.flat.detach()
    changes = [float(term(flat / 2, m.layer) / term(flat, m.layer)) for term in (
        SIMILARITIES["paper"], SIMILARITIES["mean"], SIMILARITIES["cosine"])]  # fmt: skip
    assert changes == pytest.approx([0.25, 0.25, 1.0])


def test_distances() -> None:
    dice = torch.Generator().manual_seed(1)
    one, other = (torch.randn(2, 3, 4, generator=dice) for _ in range(2))
    squares = [sum(float(x) ** 2 for x in row.flatten()) for row in one - other]
    paper = sum(square**0.5 for square in squares) / 2
    assert float(distance(one, other, "paper")) == pytest.approx(paper)
    assert float(distance(one, other, "mse")) == pytest.approx(sum(squares) / 24)
    assert distance(one.half(), other.half(), "paper").dtype == torch.float32


def test_leaves_are_views_whose_gradients_meet_in_the_flat_one() -> None:
    m = coefficients()
    m_c, m_s = m.layers[2]
    assert torch.equal(m_s, m.flat[1, 4:])
    (m_c.square().sum() + 3 * m_s.sum()).backward()
    m.flat.sum().backward()
    wanted = torch.ones(2, 9, dtype=torch.float64)
    wanted[0, 4:] += 2 * m_c.detach()
    wanted[1, 4:] += 3
    assert torch.equal(m.grad, wanted)
