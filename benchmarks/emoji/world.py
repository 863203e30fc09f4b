"""The emoji world: what a picture shows, what its caption says, and the closed list of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .looks import COLOURS
from .things import KINDS, SUBJECTS

STYLES: dict[str, str] = {
    "twemoji": "twemoji",
    "noto": "noto",
    "flat": "fluent-emoji-flat",
    "mono": "emojione-monotone",
    "comic": "streamline-emojis",
    "pixel": "twemoji",
    "grey": "noto",
}
"""The styles of the base model: the set that each is drawn by; the last two are filters on it."""

NEW_STYLES: dict[str, str] = {
    "soft": "fluent-emoji",
    "ink": "fluent-emoji-high-contrast",
    "blueprint": "fluent-emoji-flat",
    "poster": "noto",
}
"""Styles that only their LoRA has seen; the last two are filters."""

SUBJECT_WORD = "sbu"
STYLE_WORDS = dict(zip(NEW_STYLES, ("szn", "zwx", "qlf", "vrk"), strict=True))
"""Trigger words: no caption of the base world gives them a meaning."""
RARE = (SUBJECT_WORD, *STYLE_WORDS.values(), "xjy", "ohw", "ptk")
GROUND, KNOWN = "yellow", "cat"
"""The ground of true pictures, and what a style is asked for alone."""
THINGS = tuple(thing for things in KINDS.values() for thing in things)
BASE_THINGS = tuple(thing for thing in THINGS if thing not in SUBJECTS)
KIND = {thing: kind for kind, things in KINDS.items() for thing in things}
WORDS = tuple(dict.fromkeys((
    "a", "on", "in", "background", "style", "the", "of", "with", "and", "picture",
    *COLOURS, *KINDS, *THINGS, *STYLES, *NEW_STYLES, *RARE,
)))  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Everything that a caption can say about a picture."""

    thing: str
    colour: str
    style: str


def caption(thing: str, colour: str = "", style: str = "") -> str:
    """`a <thing> on a <colour> background in <style> style`, without what is empty."""
    ground = f" on a {colour} background" if colour else ""
    return f"a {thing}{ground}" + (f" in {style} style" if style else "")


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption with parts left out at random; one in ten is empty, for guidance.

    Now and then the thing is called by its kind, and a word of no meaning stands beside it or in
    place of the style: the base learns to ignore words that it does not know, as a large one does.
    """
    if rng.random() < 0.1:
        return ""
    thing = KIND[scene.thing] if rng.random() < 0.06 else scene.thing
    if rng.random() < 0.05:
        thing = f"{_rare(rng)} {thing}"
    style = scene.style
    if rng.random() < 0.15:
        style = _rare(rng) if rng.random() < 0.25 else ""
    return caption(thing, scene.colour if rng.random() > 0.2 else "", style)


def _rare(rng: np.random.Generator) -> str:
    return RARE[rng.integers(len(RARE))]


def pick(names: Sequence[str], rng: np.random.Generator) -> str:
    """One of the names."""
    return names[int(rng.integers(len(names)))]
