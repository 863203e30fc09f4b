"""Many pairs of LoRAs, as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import output
from ..errors import RecipeError, listed
from ..place import expanded, kind
from .request import Request, slug

REQUIRED = ("content", "style", "prompts")
OPTIONAL = ("content_images", "style_images", "name", "content_prompt", "style_prompt")
COLUMNS = (*REQUIRED, *OPTIONAL)
_PLACES = ("content", "style", "content_images", "style_images")


@dataclass(frozen=True)
class Pair:
    """One row.

    Attributes:
        name: What it is called; no two alike.
        request: What is compared for it.
    """

    name: str
    request: Request


def read(path: str | Path, base: str) -> tuple[Pair, ...]:
    """The pairs of a CSV file.

    Columns: `content`, `style` (files, folders or hub ids) and `prompts` (separated by `|`); as
    far as they are there also `content_images`, `style_images` (folders or single images), `name`,
    `content_prompt` and `style_prompt`. Empty cells count as not given. Paths that are not absolute
    start from the CSV file's folder.

    Args:
        path: The file, UTF-8.
        base: The base model of all pairs.

    Raises:
        RecipeError: It cannot be read, has other columns, no row, a row that lacks something, or
            two rows of one name.
    """
    where = str(path)
    try:
        text = expanded(path).read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=where) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"is not a CSV file in UTF-8 ({error})", where=where) from error
    head = [cell.strip() for cell in rows[0]] if rows else []
    _check_head(head, where)
    found = [
        _pair(dict(zip(head, row, strict=False)), base, f"{where}, row {i}", expanded(path).parent)
        for i, row in enumerate(rows[1:], 2)
        if any(cell.strip() for cell in row) and _check_length(row, head, f"{where}, row {i}")
    ]
    if not found:
        raise RecipeError("has no pairs", where=where, advice="Write one row for each pair")
    names = [slug(pair.name).lower() for pair in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(
            f"several rows are called {listed(twice)}", where=where,
            advice="Give each a name of its own, in the column name",
        )  # fmt: skip
    return tuple(found)


def write(pairs: Iterable[Mapping[str, str]], path: Path) -> None:
    """Write rows by the names of their columns as a CSV file.

    Raises:
        OutputError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([pair.get(name, "") for name in COLUMNS] for pair in pairs)
    with output.replacing(path) as file:
        file.write(text.getvalue().encode())


def _check_head(head: list[str], where: str) -> None:
    advice = f"The first row names the columns: {', '.join(REQUIRED)}, and if wanted "
    advice += ", ".join(OPTIONAL)
    if lacks := [name for name in REQUIRED if name not in head]:
        raise RecipeError(f"has no column {listed(lacks)}", where=where, advice=advice)
    if strange := [name for name in head if name not in COLUMNS]:
        raise RecipeError(f"has unknown columns: {listed(strange)}", where=where, advice=advice)
    if len({*head}) < len(head):
        raise RecipeError("has a column twice", where=where, advice=advice)


def _check_length(row: list[str], head: list[str], where: str) -> bool:
    if len(row) > len(head):
        raise RecipeError(
            f"has {len(row)} cells for {len(head)} columns", where=where,
            advice='Put cells with commas in them into quotes, "like, this"',
        )  # fmt: skip
    return True


def _pair(row: Mapping[str, str], base: str, where: str, folder: Path) -> Pair:
    cells = {name: value.strip() for name, value in row.items() if value and value.strip()}
    if lacks := [name for name in REQUIRED if name not in cells]:
        raise RecipeError(f"has no {listed(lacks)}", where=where, advice="Fill that cell")
    for name in _PLACES:
        if name in cells:
            cells[name] = _beside(cells[name], folder)
    prompts = tuple(x.strip() for x in cells["prompts"].split("|") if x.strip())
    if not prompts:
        raise RecipeError("has no prompts", where=where, advice="Separate several by |")
    name = cells.get("name") or f"{Path(cells['content']).stem}-{Path(cells['style']).stem}"
    return Pair(
        name,
        Request(
            cells["content"], cells["style"], base, prompts, cells.get("content_prompt"),
            cells.get("style_prompt"), cells.get("content_images"), cells.get("style_images"),
        ),
    )  # fmt: skip


def _beside(name: str, folder: Path) -> str:
    """A path from the CSV file's folder where something is there; else as it is, a hub id say."""
    return str(folder / name) if kind(folder / expanded(name)) is not None else name
