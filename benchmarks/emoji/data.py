"""Drawings of all things in all sets, and pictures and latents made from them, for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import sources
from .looks import Pixels, compose
from .world import NEW_STYLES, STYLES


@dataclass
class Drawings:
    """Drawings by set and thing, rendered when they are first asked for.

    Attributes:
        folder: Where the sets lie, or are fetched to.
        styles: The set that each style is drawn by.
    """

    folder: Path
    styles: dict[str, str]

    def __post_init__(self) -> None:
        self._sets: dict[str, dict[str, object]] = {}
        self._drawn: dict[tuple[str, str], Pixels | None] = {}

    @classmethod
    def of(cls, folder: Path, more: dict[str, str] | None = None) -> Drawings:
        """With the styles of the world, and ``more``."""
        return cls(folder, {**STYLES, **NEW_STYLES, **(more or {})})

    def get(self, style: str, thing: str) -> Pixels | None:
        """A drawing [128, 128, 4], None where the set has no such thing."""
        name = self.styles[style]
        if (name, thing) not in self._drawn:
            icons = self._sets.setdefault(name, sources.fetch(name, self.folder))
            found = sources.icon(icons, thing)
            self._drawn[name, thing] = sources.draw(icons, found) if found else None
        return self._drawn[name, thing]

    def picture(self, style: str, thing: str, colour: str, rng: np.random.Generator) -> Pixels:
        """A picture [64, 64, 3] of a thing in a style.

        Raises:
            KeyError: The set of the style has no such thing.
        """
        drawing = self.get(style, thing)
        if drawing is None:
            raise KeyError(f"{self.styles[style]} has no {thing}")
        return compose(drawing, colour, rng, style)


def to_tensor(stack: NDArray[np.uint8]) -> Tensor:
    """Bytes [n, h, w, 3] to [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(stack)).permute(0, 3, 1, 2).float() / 127.5 - 1
