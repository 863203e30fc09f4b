"""The scorer against true renders that it has not seen."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from lorabake.demo.figures import SUBJECTS
from lorabake.demo.looks import NEW_STYLES
from lorabake.demo.scorer import WEIGHTS, score
from lorabake.demo.world import Scene, render


def _renders(subject: str, style: str, count: int = 4) -> list[Image.Image]:
    scene = Scene(subject, "red", "white", style)
    return [Image.fromarray(render(scene, np.random.default_rng((99, i)))) for i in range(count)]


def test_true_renders_of_subjects_in_held_out_styles_score_high() -> None:
    for subject in SUBJECTS:
        for style in NEW_STYLES:
            scores = score(_renders(subject, style), subject=subject, style=style)
            assert scores.product.mean() > 0.8, (subject, style)


def test_another_figure_or_style_scores_low() -> None:
    assert score(_renders("creature", "neon"), "mobbo", "glass").subject.max() < 0.2
    assert score(_renders("creature", "neon"), "mobbo", "glass").style.max() < 0.2


def test_a_blend_of_two_renders_is_neither() -> None:
    first, second = (_renders(s, t, 8) for s, t in (("mobbo", "blueprint"), ("star", "glass")))
    blends = [Image.blend(a, b, 0.5) for a, b in zip(first, second, strict=True)]
    assert score(blends, "mobbo", "blueprint").product.mean() < 0.3


def test_scores_are_probabilities_per_picture() -> None:
    scores = score(_renders("tikku", "glass", 3), "tikku", "glass")
    assert scores.subject.shape == scores.style.shape == (3,)
    assert torch.equal(scores.product, scores.subject * scores.style)
    assert WEIGHTS.stat().st_size < 1 << 20
