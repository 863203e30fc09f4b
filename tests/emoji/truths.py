"""The true pictures that ship: held-out subjects as artists have drawn them in held-out styles."""

from __future__ import annotations

from PIL import Image

from benchmarks.emoji.shown import true_picture
from benchmarks.emoji.world import NEW_STYLES, SUBJECTS

PAIRS = [(subject, style) for subject in SUBJECTS for style in NEW_STYLES]


def truth(subject: str, style: str) -> Image.Image:
    """One of them, [64, 64]."""
    with Image.open(true_picture(subject, style)) as image:
        return image.convert("RGB")
