"""The procedural pictures and their captions."""

from __future__ import annotations

import numpy as np
import pytest

from lorabake.demo.data import picture_of, scene_of
from lorabake.demo.figures import CREATURE, SUBJECTS
from lorabake.demo.looks import LOOKS, NEW_STYLES, STYLES
from lorabake.demo.models import tokenizer
from lorabake.demo.world import CLASSES, WORDS, Scene, caption, render, sample_caption


@pytest.mark.parametrize("style", [*STYLES, *NEW_STYLES])
def test_the_same_seed_draws_the_same_picture(style: str) -> None:
    scene = Scene(CREATURE, "red", "blue", style)
    first, again = (render(scene, np.random.default_rng(4)) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)


def test_every_figure_is_drawn_differently() -> None:
    drawn = {
        name: render(Scene(name, "red", "white", "flat"), np.random.default_rng(1)).tobytes()
        for name in (*CLASSES, *SUBJECTS)
    }
    assert len(set(drawn.values())) == len(drawn)


def test_no_held_out_word_or_figure_is_in_the_base_world() -> None:
    held_out = {*SUBJECTS, *NEW_STYLES}
    for seed in range(500):
        scene = scene_of(seed)
        text = sample_caption(scene, np.random.default_rng(seed))
        assert not held_out & {*text.split(), scene.figure, scene.style}


def test_a_scene_number_names_one_picture() -> None:
    assert np.array_equal(picture_of(3), picture_of(3))
    assert not np.array_equal(picture_of(3), picture_of(4))


def test_captions_say_what_they_are_asked_to() -> None:
    scene = Scene("star", "red", "blue", "flat")
    assert caption(scene) == "a red star on a blue background in flat style"
    assert caption(scene, colour=False, ground=False, style=False) == "a star"


def test_every_word_of_the_closed_list_is_one_token() -> None:
    tokens = tokenizer()
    assert all(len(tokens(word).input_ids) == 3 for word in WORDS)
    assert {*LOOKS, *CLASSES, *SUBJECTS} <= {*WORDS}
