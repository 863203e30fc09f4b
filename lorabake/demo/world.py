"""The toy world: scenes, their captions and the closed list of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from .figures import CREATURE, SHAPES, SUBJECTS, Role, figure
from .looks import LOOKS, NEW_STYLES, STYLES, Canvas

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

SIZE = 64
SUPERSAMPLE = 4
CLASSES = (*SHAPES, CREATURE)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 134, 30),
    "yellow": (246, 212, 48),
    "green": (46, 158, 74),
    "blue": (40, 92, 214),
    "purple": (134, 56, 176),
    "white": (242, 242, 240),
    "black": (26, 26, 30),
}
WORDS = (
    "a", "on", "in", "background", "style", "the", "of", "with", "and", "picture",
    *COLOURS, *CLASSES, *STYLES, *SUBJECTS, *NEW_STYLES,
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Everything a caption can say about a picture."""

    figure: str
    colour: str
    background: str
    style: str


def sample_scene(
    rng: Generator,
    figures: tuple[str, ...] = CLASSES,
    styles: tuple[str, ...] = STYLES,
) -> Scene:
    """A random scene; the creature is drawn as often as three shapes, for it is the hardest."""
    weights = np.array([3.0 if name == CREATURE else 1.0 for name in figures])
    name = figures[rng.choice(len(figures), p=weights / weights.sum())]
    colour, background = rng.choice(list(COLOURS), 2, replace=False)
    return Scene(name, str(colour), str(background), styles[rng.integers(len(styles))])


def caption(scene: Scene, *, colour: bool = True, ground: bool = True, style: bool = True) -> str:
    """The caption of a scene, with any of its parts left out."""
    words = ["a", *([scene.colour] if colour else []), scene.figure]
    if ground:
        words += ["on", "a", scene.background, "background"]
    if style:
        words += ["in", scene.style, "style"]
    return " ".join(words)


def sample_caption(scene: Scene, rng: Generator) -> str:
    """A caption with parts dropped at random; one in ten is empty, for classifier-free guidance."""
    if rng.random() < 0.1:
        return ""
    return caption(
        scene,
        colour=rng.random() > 0.15,
        ground=rng.random() > 0.4,
        style=scene.style != "flat" or rng.random() > 0.4,
    )


def _canvas(scene: Scene, rng: Generator) -> Canvas:
    side = SIZE * SUPERSAMPLE
    roles, edges = Image.new("L", (side, side)), Image.new("L", (side, side))
    draw_roles, draw_edges = ImageDraw.Draw(roles), ImageDraw.Draw(edges)
    angle, scale = rng.uniform(-0.08, 0.08), rng.uniform(0.8, 0.9)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = rng.uniform(-0.06, 0.06, 2)
    for part in figure(scene.figure, rng):
        points = ((part.outline @ turn.T) * scale + shift + 1) * side / 2
        path = [(float(x), float(y)) for x, y in points]
        draw_roles.polygon(path, fill=int(part.role))
        # A part hides the edges below it: fill with "no edge" first, then draw its own.
        draw_edges.polygon(path, fill=0)
        if part.role != Role.DARK:
            face = part.role == Role.WHITE
            closed = [*path, path[0], path[1]]
            draw_edges.line(closed, fill=1 + face, width=6 if face else 9, joint="curve")
    return Canvas(np.asarray(roles), np.asarray(edges))


def render(scene: Scene, rng: Generator) -> NDArray[np.uint8]:
    """Draw a scene as a [64, 64, 3] picture; the same generator state gives the same picture."""
    canvas = _canvas(scene, rng)
    colours = [
        np.clip(np.array(COLOURS[name]) + rng.integers(-10, 11, 3), 0, 255)
        for name in (scene.colour, scene.background)
    ]
    picture = LOOKS[scene.style](canvas, colours[0], colours[1], rng)
    large = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return np.asarray(large.reduce(SUPERSAMPLE))
