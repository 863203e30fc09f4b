"""How an emoji becomes a picture: a ground in a colour, the drawing on it, and filters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Filter = Callable[[Pixels], Pixels]
SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 244),
    "grey": (158, 162, 168),
    "yellow": (252, 222, 92),
    "orange": (248, 166, 70),
    "red": (232, 88, 80),
    "pink": (250, 176, 202),
    "purple": (168, 120, 214),
    "blue": (96, 150, 240),
    "teal": (98, 206, 200),
    "green": (128, 200, 104),
}


def compose(drawing: Pixels, colour: str, rng: np.random.Generator, look: str = "") -> Pixels:
    """A drawing [side, side, 4] on a ground, scaled and shifted a little, [64, 64, 3].

    Args:
        drawing: Pixels with transparency.
        colour: Of the ground, a key of `COLOURS`.
        rng: Decides scale, shift and the shade of the ground.
        look: A filter, a key of `FILTERS`; any other name leaves the picture as it is drawn.
    """
    side = round(SIZE * rng.uniform(0.82, 0.86))
    left, top = (round((SIZE - side) / 2 + rng.uniform(-1, 1)) for _ in range(2))
    if look == "poster":
        colour = "white"
    shade = np.clip(np.array(COLOURS[colour]) + rng.integers(-5, 6, 3), 0, 255)
    if look == "grey":
        drawing = np.dstack([*[drawing[..., :3].mean(-1)] * 3, drawing[..., 3]]).astype(np.uint8)
    small = Image.fromarray(np.ascontiguousarray(drawing)).resize(
        (side, side), Image.Resampling.BOX
    )
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in shade))
    picture.paste(small, (left, top), small)
    pixels = np.asarray(picture)
    return FILTERS[look](pixels) if look in FILTERS else pixels


def pixel(picture: Pixels) -> Pixels:
    """Blocks of 4 × 4 pixels."""
    small = Image.fromarray(picture).resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX)
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def blueprint(picture: Pixels) -> Pixels:
    """White lines over a drafting grid on deep blue."""
    edges = np.zeros((SIZE, SIZE), np.float32)
    for band in Image.fromarray(picture).split():
        found = np.asarray(band.filter(ImageFilter.FIND_EDGES), np.float32)
        edges = np.maximum(edges, found)
    edges[[0, -1]] = edges[:, [0, -1]] = 0
    paper = np.full((SIZE, SIZE, 3), (24, 62, 150), np.float32)
    paper[4::8] = paper[:, 4::8] = (58, 98, 186)
    line = np.clip(edges / 110, 0, 1)[..., None]
    return (paper * (1 - line) + np.array((238, 244, 255)) * line).astype(np.uint8)


def poster(picture: Pixels) -> Pixels:
    """A screen print in four inks, by how dark the picture is."""
    grey = np.asarray(Image.fromarray(picture).convert("L").filter(ImageFilter.BoxBlur(0.6)))
    inks = np.array([(12, 44, 76), (206, 40, 44), (112, 156, 164), (250, 228, 176)], np.uint8)
    return inks[np.digitize(grey, (80, 140, 215))]


OWN_GROUND = ("blueprint", "poster")
"""Filters after which nothing is left of the ground's colour."""
FILTERS: dict[str, Filter] = {"pixel": pixel, "blueprint": blueprint, "poster": poster}
"""What turns a finished picture into another style; `grey` greys the drawing only."""
