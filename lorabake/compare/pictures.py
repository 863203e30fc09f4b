"""Pictures on the disk: PNG files that say what they show and what they were made with."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .. import output

KEY, FAILURE = "lorabake-key", "lorabake-failure"
_DARKEST = 2
"""Levels, of 255, that no pixel of a black picture exceeds."""


@dataclass(frozen=True)
class Picture:
    """One picture that is wanted.

    Attributes:
        path: Where it is to be.
        prompt: Its text.
        seed: Of its noise.
        settings: Everything else that determines it, as JSON values.
    """

    path: Path
    prompt: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hex digest of everything that determines the picture."""
        return digest({"prompt": self.prompt, "seed": self.seed, **self.settings})


def digest(value: Mapping[str, Any]) -> str:
    """Hex SHA-256 of JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write(picture: Picture, pixels: NDArray[np.float32]) -> None:
    """Write one picture, `[height, width, 3]` from 0 to 1; what is not finite becomes black.

    Raises:
        OutputError: It cannot be written.
    """
    finite = np.isfinite(pixels).all()
    levels = (np.where(np.isfinite(pixels), pixels, 0).clip(0, 1) * 255).round().astype(np.uint8)
    failure = "NaN" if not finite else "black" if levels.max() <= _DARKEST else ""
    about = PngInfo()
    bundle = picture.settings.get("bundle") or "none"
    chunks = {
        "Software": "lorabake", "prompt": picture.prompt, "seed": str(picture.seed),
        "bundle": bundle, "settings": json.dumps(picture.settings, sort_keys=True, default=str),
        KEY: picture.key, **({FAILURE: failure} if failure else {}),
    }  # fmt: skip
    for name, text in chunks.items():
        about.add_itxt(name, text)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, "PNG", pnginfo=about)
    output.folder(picture.path.parent)
    with output.replacing(picture.path) as file:
        file.write(data.getvalue())


def failure(picture: Picture) -> str | None:
    """Why a picture that is there shows nothing; empty if it is good, None if it is not there.

    A file that is damaged, or was made with anything else than what is wanted, is not there.
    """
    try:
        with Image.open(picture.path, formats=["PNG"]) as image:
            image.load()
            about: dict[str, str] = getattr(image, "text", {})
    except (OSError, ValueError, SyntaxError):
        return None
    return about.get(FAILURE, "") if about.get(KEY) == picture.key else None
