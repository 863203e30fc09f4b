"""Pictures of the emoji sets, drawn from their SVG sources; only training needs them.

The sources are npm packages (`@iconify-json/<set>`), fetched with `npm pack` and rendered with
resvg. Nothing of them ships but a few pictures, see NOTICE.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .things import ICONS

SIDE = 128
"""Side of a rendered drawing, in pixels; pictures are made from it by scaling down."""


def fetch(name: str, folder: Path) -> dict[str, Any]:
    """The icons of a set, from the folder or else from the npm registry."""
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"@iconify-json/{name}"]
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        archive = folder / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as files:
            member = files.extractfile("package/icons.json")
            if member is None:
                raise FileNotFoundError(f"{archive}: no package/icons.json")
            path.write_bytes(member.read())
        archive.unlink()
    return json.loads(path.read_text())


def icon(icons: dict[str, Any], thing: str) -> str | None:
    """The name under which a set draws a thing; sets differ in how they spell it."""
    plain = ICONS.get(thing, thing)
    spellings = (plain, f"{plain}-face", f"{plain}-1", thing, f"{thing}-1", plain.replace("-", ""))
    known = icons["icons"].keys() | icons.get("aliases", {}).keys()
    return next((name for name in spellings if name in known), None)


def draw(icons: dict[str, Any], name: str, side: int = SIDE) -> NDArray[np.uint8]:
    """An icon as [side, side, 4] pixels, transparent around it; `currentColor` is near black."""
    import resvg_py  # type: ignore[import-not-found]  # training only, not a dependency

    alias = icons.get("aliases", {}).get(name, {})
    body = icons["icons"][alias.get("parent", name)]
    left, top, width, height = (
        body.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    # A few drawings are not square: they are centred in a square box.
    span = max(width, height)
    box = f"{left - (span - width) / 2} {top - (span - height) / 2} {span} {span}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{span}" height="{span}">'
        f"{body['body'].replace('currentColor', '#202020')}</svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    return picture[:, ::-1] if alias.get("hFlip") else picture
