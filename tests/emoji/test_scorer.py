"""The scorer against the true pictures that ship, other shifts of which it has learnt from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.emoji.scorer import UNCLEAR, WEIGHTS, distance, score, scorer
from benchmarks.emoji.world import NEW_STYLES, STYLES, THINGS

from .truths import PAIRS, truth


@pytest.mark.parametrize(("subject", "style"), PAIRS)
def test_a_true_picture_scores_high_and_as_nothing_else(subject: str, style: str) -> None:
    picture = [truth(subject, style)]
    # Some sets draw a few things nearly alike: the guitar with gradients and the flat one.
    assert score(picture, subject, style).product > 0.3
    other = next(pair for pair in PAIRS if subject not in pair and style not in pair)
    assert score(picture, *other).product < 0.05


def test_true_pictures_score_high_on_average() -> None:
    products = [score([truth(*pair)], *pair).product for pair in PAIRS]
    assert torch.cat(products).mean() > 0.9


def test_a_blend_of_two_pictures_is_neither() -> None:
    (first, second), blends = (PAIRS[0], PAIRS[-1]), list[Image.Image]()
    for share in (0.4, 0.5, 0.6):
        blends.append(Image.blend(truth(*first), truth(*second), share))
    assert max(score(blends, *pair).product.mean() for pair in (first, second)) < 0.3


def test_scores_are_probabilities_per_picture() -> None:
    scores = score([truth(*pair) for pair in PAIRS[:3]], *PAIRS[0])
    assert scores.subject.shape == scores.style.shape == (3,)
    assert torch.equal(scores.product, scores.subject * scores.style)


def test_it_knows_the_world() -> None:
    assert scorer().things == (*THINGS, UNCLEAR)
    assert scorer().styles == (*STYLES, *NEW_STYLES, UNCLEAR)
    assert WEIGHTS.stat().st_size < 2_000_000


def test_distance_is_zero_for_a_shifted_copy_and_ranks_the_rest() -> None:
    true = truth(*PAIRS[0])
    moved = Image.fromarray(np.roll(np.asarray(true), (3, -3), (0, 1)))
    far = distance([true, moved, truth(*PAIRS[1])], [true])
    assert far[0] == 0
    # The border of three pixels that a shift brings in from the other side is not compared.
    assert far[1] < 0.02
    assert far[2] > 0.1
