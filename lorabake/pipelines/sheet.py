"""Images side by side, with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from PIL import Image, ImageDraw, ImageFont

_GAP, _INK, _PAPER = 6, (32, 32, 32), (255, 255, 255)
_SMALLEST = 160
"""Images narrower than this are enlarged by a whole number, so that labels fit above them."""


def sheet(columns: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """A sheet with one labelled column per entry, its images from top to bottom.

    Args:
        columns: Label → images; all of one size, as many in each column.
    """
    first = next(iter(columns.values()))[0]
    factor = ceil(_SMALLEST / first.width)
    width, height = first.width * factor, first.height * factor
    size = max(12, width // 14)
    top = size + 2 * _GAP
    rows = len(next(iter(columns.values())))
    page = Image.new(
        "RGB",
        (len(columns) * (width + _GAP) + _GAP, top + rows * (height + _GAP)),
        _PAPER,
    )
    draw = ImageDraw.Draw(page)
    for x, (label, images) in enumerate(columns.items()):
        left = _GAP + x * (width + _GAP)
        middle = (left + width / 2, top / 2)
        draw.text(middle, label, _INK, ImageFont.load_default(size), anchor="mm")
        for y, image in enumerate(images):
            large = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            page.paste(large, (left, top + y * (height + _GAP)))
    return page


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size in rows, as square as possible; a single one as it is."""
    if len(images) == 1:
        return images[0]
    across = ceil(len(images) ** 0.5)
    width, height = images[0].size
    rows = ceil(len(images) / across)
    page = Image.new("RGB", (across * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), _PAPER)
    for i, image in enumerate(images):
        y, x = divmod(i, across)
        page.paste(image.convert("RGB"), (x * (width + _GAP), y * (height + _GAP)))
    return page
