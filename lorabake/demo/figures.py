"""What the toy world shows: figures, as ordered lists of filled parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Outline = NDArray[np.float64]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon")
CREATURE = "creature"
SUBJECTS = ("mobbo", "tikku", "snorb")


class Role(IntEnum):
    """What a part is, so that a style can decide how it is painted."""

    GROUND = 0
    BODY = 1
    LIMB = 2
    WHITE = 3
    DARK = 4


@dataclass(frozen=True)
class Part:
    """One filled outline, [points, 2], x to the right, y down; the picture is [-1, 1] squared."""

    role: Role
    outline: Outline


def ellipse(x: float, y: float, rx: float, ry: float) -> Outline:
    """Outline of an ellipse around (x, y)."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def capsule(x0: float, y0: float, x1: float, y1: float, radius: float) -> Outline:
    """Outline of a thick line with round ends."""
    along = np.arctan2(y1 - y0, x1 - x0)
    arc = np.linspace(-np.pi / 2, np.pi / 2, 9)
    head = np.stack([x1 + radius * np.cos(along + arc), y1 + radius * np.sin(along + arc)], 1)
    tail = np.stack([x0 - radius * np.cos(along + arc), y0 - radius * np.sin(along + arc)], 1)
    return np.concatenate([head, tail])


def polygon(*points: tuple[float, float]) -> Outline:
    """Outline through the given points."""
    return np.array(points, dtype=np.float64)


def eye(x: float, y: float, radius: float) -> list[Part]:
    """A white eye with a dark pupil."""
    return [
        Part(Role.WHITE, ellipse(x, y, radius, radius)),
        Part(Role.DARK, ellipse(x, y, radius * 0.5, radius * 0.5)),
    ]


def _star() -> Outline:
    angle = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 0.98, 0.42)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.06], 1)


def _heart() -> Outline:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 18, -(y + 2.5) / 17], 1)


def _moon() -> Outline:
    outer = np.linspace(0.35 * np.pi, 1.65 * np.pi, 24)
    back = np.linspace(1.5 * np.pi, 0.5 * np.pi, 20)
    rim = np.stack([0.25 + 0.88 * np.cos(outer), 0.88 * np.sin(outer)], 1)
    bite = np.stack([0.65 + 0.62 * np.cos(back), 0.78 * np.sin(back)], 1)
    return np.concatenate([rim, bite])


def _cross() -> Outline:
    a, b = 0.3, 0.88
    return polygon(
        (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
        (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
    )  # fmt: skip


def shape(name: str) -> list[Part]:
    """One of the plain shapes."""
    outlines: dict[str, Callable[[], Outline]] = {
        "circle": lambda: ellipse(0, 0, 0.82, 0.82),
        "square": lambda: polygon((-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)),
        "triangle": lambda: polygon((0, -0.86), (0.92, 0.74), (-0.92, 0.74)),
        "star": _star,
        "heart": _heart,
        "cross": _cross,
        "ring": lambda: ellipse(0, 0, 0.88, 0.88),
        "moon": _moon,
    }
    parts = [Part(Role.BODY, outlines[name]())]
    if name == "ring":
        parts.append(Part(Role.GROUND, ellipse(0, 0, 0.42, 0.42)))
    return parts


def creature(rng: Generator) -> list[Part]:
    """A generic creature: two eyes, two or four legs, round, pointed or no ears, arms or none."""
    legs = (-0.36, 0.36) if rng.random() < 0.6 else (-0.54, -0.18, 0.18, 0.54)
    parts = [Part(Role.LIMB, capsule(x, 0.4, x, 0.84, 0.13)) for x in legs]
    ears = rng.integers(3)
    for side in (-1, 1):
        if ears == 1:
            parts.append(Part(Role.LIMB, ellipse(side * 0.44, -0.58, 0.24, 0.24)))
        elif ears == 2:
            tip = (side * 0.62, -0.95)
            parts.append(
                Part(Role.LIMB, polygon((side * 0.15, -0.5), tip, (side * 0.6, -0.2))),
            )
    if rng.random() < 0.5:
        parts += [Part(Role.LIMB, capsule(s * 0.5, 0.1, s * 0.86, -0.1, 0.11)) for s in (-1, 1)]
    bodies = (
        ellipse(0, -0.02, 0.68, 0.62),
        polygon((-0.6, -0.6), (0.6, -0.6), (0.6, 0.55), (-0.6, 0.55)),
        polygon((-0.38, -0.62), (0.38, -0.62), (0.68, 0.58), (-0.68, 0.58)),
    )
    parts.append(Part(Role.BODY, bodies[rng.integers(3)]))
    parts += eye(-0.27, -0.16, 0.23) + eye(0.27, -0.16, 0.23)
    if rng.random() < 0.7:
        parts.append(Part(Role.DARK, capsule(-0.18, 0.28, 0.18, 0.28, 0.07)))
    return parts


def mobbo() -> list[Part]:
    """Held out: one huge eye, two long upright ears, three legs."""
    parts = [Part(Role.LIMB, capsule(x, 0.5, x * 1.25, 0.88, 0.12)) for x in (-0.42, 0, 0.42)]
    parts += [Part(Role.LIMB, capsule(s * 0.24, -0.1, s * 0.4, -0.86, 0.14)) for s in (-1, 1)]
    parts.append(Part(Role.BODY, ellipse(0, 0.2, 0.66, 0.48)))
    return parts + eye(0, 0.16, 0.34)


def tikku() -> list[Part]:
    """Held out: seen from the side, a very long neck with a small head, four legs, a tail."""
    parts = [Part(Role.LIMB, capsule(x, 0.3, x, 0.86, 0.1)) for x in (-0.66, -0.36, 0.0, 0.3)]
    parts.append(Part(Role.LIMB, capsule(-0.66, 0.2, -0.92, -0.14, 0.08)))
    parts.append(Part(Role.LIMB, capsule(0.28, 0.2, 0.44, -0.66, 0.15)))
    parts.append(Part(Role.BODY, ellipse(-0.18, 0.26, 0.62, 0.3)))
    parts.append(Part(Role.BODY, ellipse(0.56, -0.66, 0.42, 0.29)))
    return parts + eye(0.58, -0.7, 0.2)


def snorb() -> list[Part]:
    """Held out: a big round shell with a dark ring, a long foot, two eyes on stalks."""
    parts = [Part(Role.LIMB, capsule(x, 0.4, x + 0.02, -0.5, 0.08)) for x in (0.42, 0.8)]
    parts.append(Part(Role.LIMB, capsule(-0.78, 0.66, 0.74, 0.66, 0.17)))
    parts.append(Part(Role.LIMB, ellipse(0.66, 0.42, 0.24, 0.34)))
    parts.append(Part(Role.BODY, ellipse(-0.28, 0.04, 0.6, 0.6)))
    parts.append(Part(Role.DARK, ellipse(-0.28, 0.04, 0.36, 0.36)))
    parts.append(Part(Role.BODY, ellipse(-0.28, 0.04, 0.22, 0.22)))
    return parts + eye(0.36, -0.58, 0.19) + eye(0.82, -0.58, 0.19)


def figure(name: str, rng: Generator) -> list[Part]:
    """The parts of any class or subject; only the generic creature draws from ``rng``."""
    subjects = {"mobbo": mobbo, "tikku": tikku, "snorb": snorb}
    if name in subjects:
        return subjects[name]()
    return creature(rng) if name == CREATURE else shape(name)
