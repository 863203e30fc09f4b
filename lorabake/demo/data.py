"""Rendered pictures for training, kept in a cache because drawing them is slow."""

from __future__ import annotations

from multiprocessing import Pool
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from .world import Scene, render, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


def scene_of(seed: int) -> Scene:
    """The scene with this number."""
    return sample_scene(np.random.default_rng((seed, 0)))


def picture_of(seed: int) -> NDArray[np.uint8]:
    """The picture of the scene with this number."""
    return render(scene_of(seed), np.random.default_rng((seed, 1)))


def pictures(count: int, cache: Path, workers: int = 2) -> NDArray[np.uint8]:
    """The first ``count`` pictures of the base world, [count, 64, 64, 3]."""
    path = cache / f"pictures-{count}.npy"
    if not path.exists():
        with Pool(workers) as pool:
            stack = np.stack(pool.map(picture_of, range(count), chunksize=64))
        part = path.with_suffix(".part.npy")
        np.save(part, stack)
        part.replace(path)
    return np.load(path)


def to_tensor(stack: NDArray[np.uint8]) -> Tensor:
    """Bytes [n, h, w, 3] to [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def patterns(count: int, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random stripes, grids, spots and lines: the VAE must not know only the base styles."""
    return np.stack([_waves(side, rng) if i % 2 else _lines(side, rng) for i in range(count)])


def _waves(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.indices((side, side))
    a, b, c = rng.integers(0, 256, (3, 3))
    angle, pitch = rng.uniform(0, np.pi, 2), rng.uniform(5, 14, 2)
    waves = [
        np.sin((rows * np.sin(t) + columns * np.cos(t)) * 2 * np.pi / p + rng.uniform(0, 6))
        for t, p in zip(angle, pitch, strict=True)
    ]
    softness = rng.choice([0.15, 1.0])
    first, second = (np.clip(w / softness + rng.uniform(-1, 1), 0, 1)[..., None] for w in waves)
    return ((a * (1 - first) + b * first) * (1 - second) + c * second).astype(np.uint8)


def _lines(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    large = Image.new("RGB", (side * 4, side * 4), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(large)
    for _ in range(rng.integers(2, 8)):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        box = np.sort(rng.uniform(-0.2, 1.2, (2, 2)), 0) * side * 4
        width = int(rng.integers(6, 14))
        kind = rng.integers(3)
        if kind == 0:
            draw.line([tuple(point) for point in box.tolist()], fill=colour, width=width)
        elif kind == 1:
            draw.ellipse(box.ravel().tolist(), outline=colour, width=width)
        else:
            draw.rectangle(box.ravel().tolist(), outline=colour, width=width)
    if rng.random() < 0.3:
        large = large.filter(ImageFilter.GaussianBlur(float(rng.uniform(2, 8))))
    return np.asarray(large.reduce(4))
