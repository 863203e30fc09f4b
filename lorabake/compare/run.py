"""`compare_fusions`: many ways to fuse the same two LoRAs, on the same seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import output
from ..device import device as device_named
from ..errors import LorabakeError, RecipeError, shortened
from ..inputs import Inputs, several
from ..pipelines import encoders
from ..place import expanded
from . import tables
from .baking import Baking, Tell
from .comparison import Comparison, Picture, References, Row
from .job import Job, prepare
from .judges import Judges, load_judges
from .page import page
from .pair_pictures import Column, PairPictures
from .rendering import Renderer
from .request import MARK, Request, Setup, slugs
from .scores import score
from .statistics import Numbers, mean
from .variants import ANCHORS, DIRECT, Variant
from .verdict import verdict
from .ways import Way, anchors, way


def compare_fusions(
    content: str | Path,
    style: str | Path,
    folder: str | Path,
    base: str | Path,
    prompts: str | Sequence[str],
    *,
    content_prompt: str | None = None,
    style_prompt: str | None = None,
    content_images: str | Path | None = None,
    style_images: str | Path | None = None,
    setup: Setup | None = None,
    progress: Tell | None = None,
) -> Comparison:
    """Bake two LoRAs in several ways, paint the same with each, score, and recommend one.

    Writes the bundles, the pictures, `report.html`, `scores.csv`, `scores.json`, `table.md`,
    `table.tex` and `command.txt`. What is there already and was made of the same is kept, so the
    same call again after an interruption goes on where it was.

    Args:
        content: `.safetensors` file, folder or hub id of the LoRA that gives the subject.
        style: Likewise of the LoRA that gives the style.
        folder: Where everything goes: a new folder, or that of an earlier call.
        base: Base model, a folder in diffusers format or a hub id.
        prompts: What is painted, with the trigger words of both in it.
        content_prompt: What the content LoRA was trained with. It paints the subject images of it
            where none are given (its trigger words otherwise), and some methods need it.
        style_prompt: Likewise of the style LoRA.
        content_images: Folder of images of the subject, or one image.
        style_images: Likewise of the style.
        setup: Methods, seeds, encoders and so on; every method that needs nothing more if None.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range.
    """
    request = Request(
        str(content), str(style), str(base), several(prompts), content_prompt, style_prompt,
        str(content_images) if content_images else None,
        str(style_images) if style_images else None,
    )  # fmt: skip
    how = setup or Setup()
    job = prepare(request, how, Path(folder))
    return carry_out(
        job,
        load_judges(base, how.encoders(), device_named(how.device)),
        renderer_for(request.base, how, job.inputs),
        progress or (lambda stage, done, total: None),
    )


def renderer_for(base: str, setup: Setup, inputs: Inputs, cache: Path | None = None) -> Renderer:
    """Where everything is painted.

    Raises:
        RecipeError: There is no such device or dtype.
    """
    if setup.dtype not in (None, "float32", "bfloat16", "float16"):
        raise RecipeError(
            f"there is no dtype {setup.dtype}", advice="Choose float32, bfloat16 or float16"
        )
    dtype = getattr(torch, setup.dtype) if setup.dtype else None
    return Renderer(base, device_named(setup.device), dtype, inputs.options, cache)


def carry_out(job: Job, judges: Judges, renderer: Renderer, tell: Tell) -> Comparison:
    """Bake, paint, score, and write everything down.

    Raises:
        UserError: The LoRAs do not fit the base model, or a load-time parameter is out of range.
        OutputError: Something cannot be written.
    """
    command = job.request.command(job.setup, str(job.folder))
    output.folder(job.folder)
    _write(job.folder / MARK, command + "\n")
    ways, warnings = _ways(job, judges, tell)
    drawn = PairPictures(job, renderer, tell, len(ways))
    columns = [drawn.column(way, name) for way, name in zip(ways, _names(ways), strict=True)]
    references = [drawn.references(i, ways[1 + i]) for i in (0, 1)]
    arrays = _scored(job, judges, columns, references, tell)
    rows = tuple(_row(job, columns[i], i, arrays) for i in range(len(columns)))
    found = Comparison(
        output=str(job.folder),
        base=encoders.recorded(job.request.base),
        prompts=job.inputs.prompts,
        seeds=tuple(job.inputs.each_seed),
        rows=rows,
        verdict=verdict(_candidates(rows, arrays)),
        subject=references[0],
        style=references[1],
        encoders={role: asdict(judge) for role, judge in judges.judges.items()},
        left_out=judges.left_out,
        warnings=(*drawn.warnings(), *warnings),
        command=command,
        key=job.key(judges),
        painted=drawn.painted,
    )
    _write(job.folder / "report.html", page(found))
    _write(job.folder / "scores.csv", tables.csv_of(found))
    _write(job.folder / "table.md", tables.markdown(found))
    _write(job.folder / "table.tex", tables.latex(found))
    _write(job.folder / "scores.json", json.dumps(found.to_json(), indent=1) + "\n")
    return found


def _write(path: Path, text: str) -> None:
    with output.replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _names(ways: Sequence[Way]) -> list[str]:
    return slugs([way.label for way in ways])


def _ways(job: Job, judges: Judges, tell: Tell) -> tuple[list[Way], list[str]]:
    """All columns, and warnings; a variant that cannot be baked is a column that says why."""
    baking = Baking(
        job.request.content, job.request.style,
        (job.loras[0].provenance.sha256, job.loras[1].provenance.sha256), job.request.base,
        job.folder / "bundles", job.setup.device, job.setup.family, job.setup.svd_rank,
    )  # fmt: skip
    chosen = job.variants(judges)
    names = slugs([*ANCHORS, *(variant.label for variant in chosen)])[len(ANCHORS) :]
    merged = Variant(DIRECT, method="direct")
    found = [*anchors(baking.bundle("direct-merge", merged, tell, "float32").bundle)]
    warnings: list[str] = []
    for i, (name, variant) in enumerate(zip(names, chosen, strict=True)):
        tell("baking", i, len(chosen))
        try:
            baked = baking.bundle(name, variant, lambda stage, done, total: None)
        except LorabakeError as error:
            reason = str(error)
            found.append(Way(variant.label, method=variant.method, reason=reason,
                             parameters={**variant.params, **variant.overrides}))  # fmt: skip
            continue
        found.append(way(variant, baked.bundle, judges))
        warnings += [f"{variant.label}: {text}" for text in baked.warnings]
        theirs = tuple(source.sha256 for source in baked.bundle.manifest.sources)
        if theirs != baking.sources:
            warnings.append(f"{variant.label}: this bundle was made of other LoRAs")
    tell("baking", len(chosen), len(chosen))
    return found, warnings


def _scored(
    job: Job, judges: Judges, columns: Sequence[Column], references: Sequence[References],
    tell: Tell,
) -> dict[str, Numbers]:  # fmt: skip
    """All scores, `[ways, prompts, seeds]`."""
    seeds, count = job.inputs.seeds, len(job.inputs.prompts)
    flat = [
        [None if failure else x.path for x, failure in zip(c.pictures, c.failures, strict=True)]
        for c in columns
    ]
    paths = [[row[i * seeds : (i + 1) * seeds] for i in range(count)] for row in flat]
    total = len(judges.sees) * sum(path is not None for row in flat for path in row)
    seen = 0

    def done(more: int) -> None:
        nonlocal seen
        seen += more
        tell("scoring", seen, total)

    places = [
        [expanded(x) if of.prompt is None else job.folder / x for x in of.images]
        for of in references
    ]
    return score(judges, paths, job.inputs.prompts, (places[0], places[1]), done)


def _row(job: Job, column: Column, i: int, arrays: Mapping[str, Numbers]) -> Row:
    own = {name: values[i].reshape(-1) for name, values in arrays.items()}
    merged = ANCHORS.index(DIRECT)
    differences = {
        name: mean(values - arrays[name][merged].reshape(-1))
        for name, values in own.items()
        if i != merged
    }
    seeds = job.inputs.seeds
    made = tuple(
        Picture(
            x.path.relative_to(job.folder).as_posix(), j // seeds, x.seed, failure,
            {name: round(float(values[j]), 6) for name, values in own.items()},
        )
        for j, (x, failure) in enumerate(zip(column.pictures, column.failures, strict=True))
    )  # fmt: skip
    way = column.way
    return Row(
        label=way.label, anchor=way.anchor, method=way.method, parameters=way.parameters,
        bundle=_file(way, job.folder), digest=way.digest, reason=shortened(way.reason, 500),
        pictures=made, means={name: mean(values) for name, values in own.items()},
        differences=differences,
    )  # fmt: skip


def _file(way: Way, folder: Path) -> str | None:
    if way.file is None:
        return None
    inside = way.file.is_relative_to(folder)
    return way.file.relative_to(folder).as_posix() if inside else way.file.name


def _candidates(rows: Sequence[Row], arrays: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """The harmonic means of what can be recommended."""
    if "harmonic" not in arrays:
        return {}
    pairs: list[tuple[Row, Any]] = list(zip(rows, arrays["harmonic"], strict=True))
    return {
        row.label: values.reshape(-1)
        for row, values in pairs
        if not row.anchor or row.label == DIRECT
    }
