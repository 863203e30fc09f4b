"""How much of a subject and of a style a picture shows, judged by a small classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from .data import to_tensor
from .figures import SUBJECTS
from .looks import NEW_STYLES, STYLES
from .world import CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "scorer.safetensors"
UNCLEAR = "unclear"
FIGURES = (*CLASSES, *SUBJECTS, UNCLEAR)
LOOKS = (*STYLES, *NEW_STYLES, UNCLEAR)


class Scorer(nn.Module):
    """Four strided convolutions and two heads; each head can also answer "unclear"."""

    def __init__(self) -> None:
        """Build it with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, 24, 48, 80, 112)
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.figure = nn.Sequential(
            nn.Flatten(), nn.Linear(112 * 16, 64), nn.SiLU(), nn.Linear(64, len(FIGURES))
        )
        self.look = nn.Linear(2 * 112, len(LOOKS))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the figure and of the style, for pictures in [-1, 1]."""
        features = self.features(pictures)
        # Where things are tells the figure; a style is everywhere, so its place is averaged out.
        where = self.figure(features)
        return where, self.look(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))


@dataclass(frozen=True)
class Scores:
    """One probability per picture."""

    subject: Tensor
    style: Tensor

    @property
    def product(self) -> Tensor:
        """How far a picture shows both."""
        return self.subject * self.style


@cache
def scorer() -> Scorer:
    """The shipped classifier."""
    model = Scorer()
    model.load_state_dict({k: v.float() for k, v in load_file(WEIGHTS).items()})
    return model.eval()


@torch.no_grad()
def score(images: Sequence[Image], subject: str, style: str) -> Scores:
    """Probability of ``subject`` and of ``style`` in each 64 x 64 picture."""
    stack = np.stack([np.asarray(image.convert("RGB")) for image in images])
    figures, looks = scorer()(to_tensor(stack))
    return Scores(
        figures.softmax(1)[:, FIGURES.index(subject)],
        looks.softmax(1)[:, LOOKS.index(style)],
    )
