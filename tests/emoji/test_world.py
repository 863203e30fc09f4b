"""Captions, words and the making of a picture from a drawing; no source is fetched for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import emoji
from benchmarks.emoji import sources
from benchmarks.emoji.data import Drawings
from benchmarks.emoji.looks import COLOURS, FILTERS, compose
from benchmarks.emoji.models import tokenizer
from benchmarks.emoji.things import ICONS, KINDS, RESERVED_SETS, RESERVED_THINGS, SUBJECTS
from benchmarks.emoji.world import (
    BASE_THINGS,
    KIND,
    NEW_STYLES,
    RARE,
    STYLES,
    THINGS,
    WORDS,
    Scene,
    caption,
    sample_caption,
)


def _disc() -> np.ndarray:
    y, x = np.indices((128, 128)) - 63.5
    inside = np.hypot(y, x) < 50
    drawing = np.zeros((128, 128, 4), np.uint8)
    drawing[inside] = (200, 30, 40, 255)
    return drawing


@pytest.mark.parametrize("look", ["flat", "grey", *FILTERS])
def test_the_same_seed_draws_the_same_picture(look: str) -> None:
    first, again = (compose(_disc(), "blue", np.random.default_rng(4), look) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)


def test_a_drawing_stands_on_its_ground() -> None:
    picture = compose(_disc(), "blue", np.random.default_rng(1))
    assert np.abs(picture[0, 0].astype(int) - COLOURS["blue"]).max() <= 5
    assert tuple(picture[32, 32]) == (200, 30, 40)


def test_filters_differ_and_keep_the_shape() -> None:
    plain = compose(_disc(), "white", np.random.default_rng(1))
    looks = {name: compose(_disc(), "white", np.random.default_rng(1), name) for name in FILTERS}
    assert len({picture.tobytes() for picture in (plain, *looks.values())}) == len(FILTERS) + 1
    for name in ("pixel", "poster"):
        assert not np.array_equal(looks[name][32, 32], looks[name][2, 2])


def test_captions_say_what_they_are_asked_to() -> None:
    assert caption("cat", "blue", "flat") == "a cat on a blue background in flat style"
    assert caption("cat") == "a cat"


def test_no_held_out_thing_or_style_has_a_meaning_in_the_base_world() -> None:
    held_out = {*SUBJECTS, *NEW_STYLES}
    assert not held_out & {*BASE_THINGS, *STYLES}
    for i in range(300):
        rng = np.random.default_rng(i)
        scene = Scene(BASE_THINGS[i % len(BASE_THINGS)], "red", "flat")
        assert not held_out & {*sample_caption(scene, rng).split()}


def test_what_is_reserved_is_nowhere() -> None:
    assert not {*RESERVED_THINGS} & {*THINGS, *ICONS, *ICONS.values(), *WORDS}
    assert not {*RESERVED_SETS} & {*STYLES.values(), *NEW_STYLES.values()}


def test_every_word_of_the_closed_list_is_one_token() -> None:
    tokens = tokenizer()
    assert all(len(tokens(word).input_ids) == 3 for word in WORDS)
    assert {*THINGS, *KINDS, *STYLES, *COLOURS, *RARE} <= {*WORDS}
    assert all(KIND[thing] == kind for thing, kind in SUBJECTS.items())


def test_a_set_is_read_as_iconify_packs_it(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(
        '{"icons": {"cat-face": {"body": "x"}}, "aliases": {"dog": {"parent": "cat-face"}}}'
    )
    icons = sources.fetch("mine", tmp_path)
    assert sources.icon(icons, "cat") == "cat-face"
    assert sources.icon(icons, "dog") == "dog"
    assert sources.icon(icons, "whale") is None
    assert Drawings(tmp_path, {"own": "mine"}).get("own", "whale") is None


def test_the_package_holds_no_source() -> None:
    assert not [*Path(emoji.__file__).parent.rglob("icons.json")]
