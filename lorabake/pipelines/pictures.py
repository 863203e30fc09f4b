"""Images from a folder or a file: made square as in training, or as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError, listed, shortened
from ..place import expanded, kind

T = TypeVar("T")

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Of the files that count as images, in lower case."""


def read(place: str | Path, size: int) -> Tensor:
    """All images of a folder, made square as diffusers' DreamBooth training does.

    Each is turned as its EXIF says, put on white where it is transparent, resized (bilinear)
    until its shorter side is `size`, and cut to the square in its middle.

    Args:
        place: Holds the images; hidden files, other files and sub-folders are left alone. Or one
            image file.
        size: Width and height in pixels.

    Returns:
        Float32 `[n, 3, size, size]` in [-1, 1], by the files' names in code point order.

    Raises:
        ImageError: There is no such folder or file, it has no images, or some cannot be read or
            would be enlarged more than twofold.
    """
    least = f"; the shorter side needs {-(-size // 2)} pixels or more" if size > 1 else ""
    return torch.stack(_each(place, lambda image: _square(image, size), least))


def each(place: str | Path, see: Callable[[Tensor], T]) -> list[T]:
    """What `see` makes of each image, upright and on white as in `read`, but in its own size.

    Args:
        place: A folder of images, or one image file.
        see: Gets one image at a time, float32 `[3, height, width]` in [0, 1].

    Raises:
        ImageError: There is no such folder or file, it has no images, or some cannot be read.
    """
    return _each(place, lambda image: see(_pixels(image) / 255))


def _each(place: str | Path, see: Callable[[Image.Image], T], least: str = "") -> list[T]:
    paths = _paths(place)
    found: list[T] = []
    wrong: list[str] = []
    for path in paths:
        try:
            found.append(see(_load(path)))
        except _UnusableError as error:
            wrong.append(f"{shortened(path.name, 60)} ({error})")
    if wrong:
        raise ImageError(
            f"{len(wrong)} of its {len(paths)} images cannot be used: {listed(wrong)}"
            if kind(place) == "folder"
            else f"cannot be used: {wrong[0]}",
            where=str(place),
            advice=f"Replace or remove {'them' if kind(place) == 'folder' else 'it'}{least}",
        )
    return found


class _UnusableError(Exception):
    """Why an image is refused."""


def _paths(place: str | Path) -> list[Path]:
    advice = f"Name a folder with images ({', '.join(SUFFIXES)}), or one image"
    if (found := kind(place)) == "file":
        return [expanded(place)]
    if found != "folder":
        what = "is neither a folder nor a file" if found else "no such folder or image"
        raise ImageError(what, where=str(place), advice=advice)
    try:
        inside = sorted(expanded(place).iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror})", where=str(place)) from error
    paths = [
        path
        for path in inside
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and kind(path) != "folder"
    ]
    if not paths:
        raise ImageError("has no images", where=str(place), advice=advice)
    return paths


def _load(path: Path) -> Image.Image:
    """An upright RGB image. Pillow raises a dozen types for a damaged one."""
    if kind(path) != "file":
        raise _UnusableError("unreadable: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _UnusableError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise _UnusableError("unreadable: not an image that Pillow knows") from error
    except Exception as error:
        raise _UnusableError(f"unreadable: {shortened(str(error), 60).rstrip('.')}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Grey of 16 bits, of which Pillow's own conversion leaves nothing but white.
        high = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Tensor:
    width, height = image.size
    short = min(width, height)
    if 2 * short < size:
        raise _UnusableError(f"too small: {width} × {height}")
    width, height = width * size // short, height * size // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    # Python's round, to the even number, is where DreamBooth's crop begins.
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return _pixels(image) / 127.5 - 1


def _pixels(image: Image.Image) -> Tensor:
    """`[3, height, width]`, float32 from 0 to 255."""
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous()
