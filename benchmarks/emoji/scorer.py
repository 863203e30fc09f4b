"""How much of a thing and of a style a picture shows: a small classifier, and the true picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from .data import to_tensor

WEIGHTS = Path(__file__).parent / "scorer.safetensors"
UNCLEAR = "unclear"


class Scorer(nn.Module):
    """Four strided convolutions and two heads; each head can also answer "unclear".

    Args:
        things: Names of what it tells apart.
        styles: Names of the styles.
    """

    def __init__(self, things: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        self.things, self.styles = (*things, UNCLEAR), (*styles, UNCLEAR)
        blocks = [_block(before, after) for before, after in pairwise((3, 32, 64, 112, 160))]
        self.shallow, self.deep = nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:])
        self.thing = nn.Sequential(
            nn.Flatten(), nn.Linear(160 * 16, 160), nn.SiLU(), nn.Linear(160, len(self.things))
        )
        self.style = nn.Sequential(
            nn.Linear(2 * (64 + 160), 96), nn.SiLU(), nn.Linear(96, len(self.styles))
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of thing and style, [n, things] and [n, styles], of pictures in [-1, 1]."""
        shallow = self.shallow(pictures)
        deep = self.deep(shallow)
        # Where things are tells the thing; a style is everywhere, so its place is averaged out.
        pooled = [f(x) for x in (shallow, deep) for f in (_mean, _largest)]
        return self.thing(deep), self.style(torch.cat(pooled, 1))

    def save(self, path: Path) -> None:
        """Write weights and names."""
        names = {"things": json.dumps(self.things[:-1]), "styles": json.dumps(self.styles[:-1])}
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, path, names)

    @classmethod
    def load(cls, path: Path) -> Scorer:
        """Read weights and names."""
        with safe_open(path, "pt") as file:
            names = file.metadata()
            model = cls(json.loads(names["things"]), json.loads(names["styles"]))
            model.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118 - not a mapping
        return model.eval()


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()
    )


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _largest(x: Tensor) -> Tensor:
    return x.amax((2, 3))


@dataclass(frozen=True)
class Scores:
    """One probability per picture, [n] each."""

    subject: Tensor
    style: Tensor

    @property
    def product(self) -> Tensor:
        """How far a picture shows both."""
        return self.subject * self.style


@cache
def scorer(path: Path = WEIGHTS) -> Scorer:
    """A trained classifier, by default the shipped one."""
    return Scorer.load(path)


@torch.no_grad()
def score(images: Sequence[Image], thing: str, style: str, model: Scorer | None = None) -> Scores:
    """Probability of a thing and of a style in each 64 x 64 picture.

    Args:
        images: Pictures.
        thing: One of the scorer's things.
        style: One of its styles.
        model: The scorer, by default the shipped one.
    """
    model = model or scorer()
    things, styles = model(stack(images))
    return Scores(
        things.softmax(1)[:, model.things.index(thing)],
        styles.softmax(1)[:, model.styles.index(style)],
    )


def stack(images: Sequence[Image]) -> Tensor:
    """Pictures as [n, 3, 64, 64] in [-1, 1]."""
    return to_tensor(np.stack([np.asarray(image.convert("RGB")) for image in images]))


def distance(images: Sequence[Image], truths: Sequence[Image]) -> Tensor:
    """How far each picture is from the nearest true one, [n]; no trained weights have a part in it.

    Mean absolute difference of the slightly blurred pictures, 0 to 2, the smallest over the true
    pictures and over shifts of up to three pixels.

    Args:
        images: Pictures to judge.
        truths: True renders, drawn with other shifts and shades.
    """
    blur = [
        functional.avg_pool2d(stack(x), 3, 1, 1, count_include_pad=False) for x in (images, truths)
    ]
    shifts = [(y, x) for y in range(-3, 4, 3) for x in range(-3, 4, 3)]
    best = torch.full((len(images),), torch.inf)
    for shift in shifts:
        moved = blur[1].roll(shift, (2, 3))[..., 3:-3, 3:-3]
        far = (blur[0][:, None, :, 3:-3, 3:-3] - moved).abs().mean((2, 3, 4))
        best = torch.minimum(best, far.amin(1))
    return best
