"""How the toy world looks: each style paints a canvas of part roles and edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from .figures import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Pixels = NDArray[np.float32]
    Colour = NDArray[np.int64]
    Look = Callable[["Canvas", Colour, Colour, Generator], Pixels]

STYLES = ("flat", "cartoon", "outline", "shaded", "striped", "dotted")
NEW_STYLES = ("blueprint", "neon", "glass")
BLACK, WHITE = (22, 20, 24), (246, 246, 242)


@dataclass(frozen=True)
class Canvas:
    """Per pixel, the role of the topmost part and its edge: 0 none, 1 of the body, 2 of a face."""

    roles: NDArray[np.uint8]
    edges: NDArray[np.uint8]

    @property
    def grid(self) -> NDArray[np.int64]:
        """Row and column of every pixel, [2, height, width]."""
        return np.indices(self.roles.shape)

    def paint(
        self, ground: object, body: object, limb: object, white: object, dark: object
    ) -> Pixels:
        """One colour per role."""
        return np.array([ground, body, limb, white, dark], dtype=np.float32)[self.roles]


def _filled(canvas: Canvas, colour: Colour, ground: Colour) -> Pixels:
    return canvas.paint(ground, colour, colour * 0.8, WHITE, BLACK)


def flat(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Plain fills."""
    return _filled(canvas, colour, ground)


def cartoon(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Plain fills inside thick black lines."""
    picture = _filled(canvas, colour, ground)
    picture[canvas.edges > 0] = BLACK
    return picture


def outline(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Only lines in the colour, nothing filled."""
    picture = canvas.paint(ground, ground, ground, ground, colour)
    picture[canvas.edges > 0] = colour
    return picture


def shaded(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """A ball-like light from the upper left, and a ground that darkens downwards."""
    rows, columns = canvas.grid
    side = len(canvas.roles)
    light = 1.35 - 0.95 * np.hypot(rows - 0.25 * side, columns - 0.3 * side) / side
    picture = _filled(canvas, colour, ground)
    amount = np.where(canvas.roles == Role.GROUND, 1.1 - 0.5 * rows / side, light)
    amount[canvas.roles >= Role.WHITE] = 1
    return picture * amount[..., None].astype(np.float32)


def striped(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Diagonal stripes on the body."""
    rows, columns = canvas.grid
    stripe = ((rows + columns + rng.integers(32)) // 18) % 2 == 0
    picture = _filled(canvas, colour, ground)
    pale = (np.array(colour) * 0.45 + 140) if colour.mean() < 190 else colour * 0.62
    picture[stripe & (canvas.roles == Role.BODY)] = pale
    return picture


def dotted(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Round dots on the ground."""
    rows, columns = canvas.grid
    pitch = 42
    offset = rng.integers(pitch, size=2)
    distance = np.hypot(
        (rows + offset[0]) % pitch - pitch / 2,
        (columns + offset[1]) % pitch - pitch / 2,
    )
    picture = _filled(canvas, colour, ground)
    pale = (np.array(ground) * 0.5 + 125) if ground.mean() < 190 else ground * 0.66
    picture[(distance < 12) & (canvas.roles == Role.GROUND)] = pale
    return picture


def blueprint(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Held out: white lines over a drafting grid on deep blue."""
    rows, columns = canvas.grid
    offset = rng.integers(48, size=2)
    ruled = ((rows + offset[0]) % 48 < 7) | ((columns + offset[1]) % 48 < 7)
    deep, paper = (16, 44, 128), (34, 74, 170)
    picture = canvas.paint(deep, paper, paper, deep, (230, 240, 255))
    picture[ruled & (canvas.roles == Role.GROUND)] = (84, 126, 204)
    picture[canvas.edges > 0] = (236, 244, 255)
    return picture


def neon(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Held out: glowing pink tubes, cyan faces and a cyan frame on black."""
    rows, columns = canvas.grid
    side = len(canvas.roles)
    rim = np.maximum(abs(rows - side / 2), abs(columns - side / 2))
    tubes = np.zeros((side, side, 3), np.float32)
    tubes[(rim > side * 0.445) & (rim < side * 0.475)] = (30, 220, 235)
    tubes[canvas.edges == 1] = (255, 48, 190)
    tubes[(canvas.edges == 2) | (canvas.roles == Role.DARK)] = (60, 240, 250)
    sharp = Image.fromarray(tubes.astype(np.uint8))
    glow = np.asarray(sharp.filter(ImageFilter.GaussianBlur(12)), np.float32)
    night, haze = (6, 3, 12), (30, 6, 44)
    picture = canvas.paint(night, haze, haze, night, night)
    return np.maximum(picture + 1.1 * glow, tubes)


def glass(canvas: Canvas, colour: Colour, ground: Colour, rng: Generator) -> Pixels:
    """Held out: jewel-coloured panes between black lead lines, amber behind, green in front."""
    rows, columns = canvas.grid
    side = len(canvas.roles)
    y, x = (axis.ravel() + rng.uniform(0.25, 0.75, 9) for axis in np.indices((3, 3)))
    far = np.hypot(rows[..., None] - y * side / 3, columns[..., None] - x * side / 3)
    pane = far.argmin(-1)
    nearest = np.partition(far, 1, axis=-1)
    lead = nearest[..., 1] - nearest[..., 0] < 9
    amber = np.array([(250, 176, 30), (226, 92, 24), (252, 208, 84), (200, 40, 40)], np.float32)
    green = np.array([(22, 160, 110), (30, 140, 200), (80, 200, 110), (40, 190, 190)], np.float32)
    kind = (pane + rng.integers(4)) % 4
    picture = canvas.paint(BLACK, BLACK, BLACK, (255, 246, 190), BLACK)
    for role, panes in ((Role.GROUND, amber), (Role.BODY, green), (Role.LIMB, green)):
        here = canvas.roles == role
        picture[here] = panes[kind[here]]
    picture[lead & (canvas.roles < Role.WHITE)] = BLACK
    picture[canvas.edges > 0] = BLACK
    return picture


LOOKS: dict[str, Look] = {
    look.__name__: look
    for look in (flat, cartoon, outline, shaded, striped, dotted, blueprint, neon, glass)
}
