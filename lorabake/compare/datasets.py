"""Public data sets as pairs: subjects laid out as DreamBooth's, styles as StyleDrop's.

DreamBooth (github.com/google/dreambooth, `dataset/`): a folder of images for each subject, and
`prompts_and_classes.txt` with lines `subject,class`. StyleDrop has no files of its own; public
copies hold images and one JSON, CSV or text file that describes each: `data.json` with
`"image.jpg": ["A house", "in watercolor painting style"]`, or lines `image.jpg,A house,in … style`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError, RecipeError
from ..pipelines.pictures import SUFFIXES
from ..place import expanded, kind

_CLASSES = "prompts_and_classes.txt"
_DESCRIPTIONS = (".json", ".csv", ".txt")


@dataclass(frozen=True)
class Subject:
    """One subject.

    Attributes:
        name: Its folder's.
        images: The folder.
        noun: Its class, such as `dog`.
    """

    name: str
    images: Path
    noun: str


@dataclass(frozen=True)
class Style:
    """One style.

    Attributes:
        name: Its image's, without suffix.
        image: The image.
        shows: What the image shows, such as `A house`; empty where nobody says.
        manner: How, such as `in watercolor painting style`.
    """

    name: str
    image: Path
    shows: str
    manner: str


def dreambooth(folder: str | Path) -> tuple[Subject, ...]:
    """The subjects of a folder laid out as the DreamBooth data set, by name.

    Raises:
        ImageError: There is no such folder, or no subject in it.
        RecipeError: A subject has no class.
    """
    place = _opened(folder)
    inside = sorted(x for x in place.iterdir() if kind(x) == "folder" and x.name[0] != ".")
    with_images = [x for x in inside if any(_images(x))]
    if not with_images:
        raise ImageError("has no folders with images", where=str(folder))
    path = place / _CLASSES
    text = path.read_text(encoding="utf-8") if kind(path) == "file" else ""
    classes = dict(re.findall(r"^([\w-]+),[ ]*([\w -]+?)[ ]*$", text, re.MULTILINE))
    for subject in with_images:
        if subject.name not in classes:
            raise RecipeError(
                f"says no class of {subject.name}", where=str(path),
                advice=f"Add a line such as {subject.name},dog",
            )  # fmt: skip
    return tuple(Subject(x.name, x, classes[x.name]) for x in with_images)


def styledrop(folder: str | Path) -> tuple[Style, ...]:
    """The styles of a folder of images and one file that describes them, in the file's order.

    Raises:
        ImageError: There is no such folder.
        RecipeError: No file describes the images, or it is not of a known layout.
    """
    place = _opened(folder)
    files = sorted(x for x in place.iterdir() if x.suffix in _DESCRIPTIONS and x.name[0] != ".")
    for file in files:
        found = [x for x in _described(file) if kind(x.image) == "file"]
        if found:
            return tuple(found)
    raise RecipeError(
        "has no JSON, CSV or text file that describes its images", where=str(folder),
        advice='Write lines such as house.jpg,A house,"in watercolor painting style"',
    )  # fmt: skip


def pairs(
    subjects: Iterable[Subject], styles: Sequence[Style], loras: str | Path, token: str = "sks"
) -> list[dict[str, str]]:
    """Every subject with every style, as rows of a pairs file.

    Args:
        subjects: Subjects.
        styles: Styles.
        loras: Folder with a LoRA for each, `<name>.safetensors` or a folder of that name.
        token: Word that the subjects' LoRAs were trained with, before the class.

    Raises:
        RecipeError: A LoRA is missing.
    """
    found: list[dict[str, str]] = []
    for subject in subjects:
        own = f"a {token} {subject.noun}"
        for style in styles:
            shown = f"{style.shows} {style.manner}".strip()
            found.append({
                "name": f"{subject.name}-{style.name}",
                "content": _lora(loras, subject.name), "style": _lora(loras, style.name),
                "prompts": f"{own} {style.manner}", "content_prompt": own, "style_prompt": shown,
                "content_images": str(subject.images.resolve()),
                "style_images": str(style.image.resolve()),
            })  # fmt: skip
    return found


def _opened(folder: str | Path) -> Path:
    if kind(folder) != "folder":
        raise ImageError("no such folder", where=str(folder))
    return expanded(folder)


def _images(folder: Path) -> Iterator[Path]:
    return (x for x in folder.iterdir() if x.suffix.lower() in SUFFIXES and x.name[0] != ".")


def _lora(folder: str | Path, name: str) -> str:
    for path in (expanded(folder) / f"{name}.safetensors", expanded(folder) / name):
        if kind(path) is not None:
            return str(path.resolve())
    raise RecipeError(f"has no LoRA {name}.safetensors", where=str(folder), advice="Add it there")


def _described(file: Path) -> Iterator[Style]:
    """The styles that a file tells of."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    if file.suffix == ".json":
        try:
            told = json.loads(text)
        except ValueError:
            return
        rows = [[k, *(v if isinstance(v, list) else [v])] for k, v in _items(told)]
    else:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    for row in rows:
        cells = [str(cell).strip() for cell in row if str(cell).strip()]
        if len(cells) >= 2 and Path(cells[0]).suffix.lower() in SUFFIXES:
            shows, manner = cells[1:3] if len(cells) > 2 else _halves(cells[1])
            yield Style(Path(cells[0]).stem, file.parent / cells[0], shows, manner)


def _items(told: object) -> list[tuple[str, object]]:
    return list(told.items()) if isinstance(told, dict) else []


def _halves(text: str) -> tuple[str, str]:
    """`A house in watercolor painting style` as what it shows and how."""
    shows, word, manner = text.rpartition(" in ")
    return (shows, f"in {manner}") if word else ("", text)
