"""`compare_fusions`: many ways to fuse the same two LoRAs, on the same seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import lora, output
from ..device import device as device_named
from ..errors import AttachError, LorabakeError, RecipeError, shortened
from ..inputs import Inputs, several
from ..lora import Lora
from ..pipelines import encoders
from ..place import expanded
from . import tables
from .baking import Kitchen, Tell, stamp
from .comparison import Comparison, Picture, References, Row
from .judges import Judges, convene
from .page import page
from .painting import Studio
from .pictures import Picture as Wanted
from .pictures import digest
from .request import MARK, Request, Setup, claim, slugs
from .scores import score
from .statistics import Numbers, mean
from .triggers import without_trigger
from .variants import ANCHORS, DIRECT, Variant, variants
from .verdict import verdict
from .ways import Way, anchors, way

REFERENCES, REFERENCE_SEED = 4, 1_000_000
"""Images that a LoRA paints of itself, with seeds that no picture has."""
_ROLES = ("content", "style")


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
        convene(base, how.encoders(), device_named(how.device)),
        studio_for(request.base, how, job.inputs),
        progress or (lambda stage, done, total: None),
    )


@dataclass(frozen=True)
class Job:
    """A request that has been checked.

    Attributes:
        request: What is asked for.
        setup: How.
        folder: Where everything goes.
        inputs: Prompts, seeds and options.
        loras: Content and style, as read.
    """

    request: Request
    setup: Setup
    folder: Path
    inputs: Inputs
    loras: tuple[Lora, Lora]

    def variants(self, judges: Judges | None = None) -> tuple[Variant, ...]:
        """What is compared, with what the methods are given.

        Raises:
            UserError: A name, parameter or value is unknown or out of range, or one is missing.
        """
        given = self.request.given()
        if judges is not None and {"clip", "dino"} <= judges.places.keys():
            given |= {role: judges.places[role] for role in ("clip", "dino")}
        else:
            given["guide"] = "off"  # there is nothing to guide latents by
        of = self.setup
        return variants(
            of.methods, of.presets, of.bundles, given=given, settings=of.settings, grid=of.grid
        )

    def key(self, judges: Judges) -> str:
        """Digest of everything that was asked for, and of the files that it was asked of."""
        request, setup = self.request, self.setup
        places = (request.base, request.content_images, request.style_images, *setup.bundles)
        return digest({
            "request": request.to_json(), "setup": asdict(setup),
            "loras": [x.provenance.sha256 for x in self.loras],
            "places": [stamp(x) for x in places if x], "left_out": judges.left_out,
            "encoders": {k: v.digest for k, v in judges.judges.items()},
            "version": version("lorabake"),
        })  # fmt: skip


def prepare(request: Request, setup: Setup, folder: Path) -> Job:
    """Check everything that can be checked before a model is loaded.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range.
    """
    inputs = setup.inputs(request.prompts)
    request.check()
    claim(folder, MARK)
    loras = lora.read_both(
        request.content, request.style, family=setup.family, svd_rank=setup.svd_rank
    )
    lora.common_family(*loras)
    job = Job(request, setup, folder, inputs, loras)
    job.variants()
    return job


def studio_for(base: str, setup: Setup, inputs: Inputs, cache: Path | None = None) -> Studio:
    """Where everything is painted.

    Raises:
        RecipeError: There is no such device or dtype.
    """
    if setup.dtype not in (None, "float32", "bfloat16", "float16"):
        raise RecipeError(
            f"there is no dtype {setup.dtype}", advice="Choose float32, bfloat16 or float16"
        )
    dtype = getattr(torch, setup.dtype) if setup.dtype else None
    return Studio(base, device_named(setup.device), dtype, inputs.options, cache)


def carry_out(job: Job, judges: Judges, studio: Studio, tell: Tell) -> Comparison:
    """Bake, paint, score, and write everything down.

    Raises:
        UserError: The LoRAs do not fit the base model, or a load-time parameter is out of range.
        OutputError: Something cannot be written.
    """
    command = job.request.command(job.setup, str(job.folder))
    output.folder(job.folder)
    _write(job.folder / MARK, command + "\n")
    ways, warnings = _ways(job, judges, tell)
    easel = _Easel(job, studio, tell, len(ways))
    columns = [easel.column(way, name) for way, name in zip(ways, _names(ways), strict=True)]
    references = [easel.references(i, ways[1 + i]) for i in (0, 1)]
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
        warnings=(*easel.warnings(), *warnings),
        command=command,
        key=job.key(judges),
        painted=easel.painted,
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
    kitchen = Kitchen(
        job.request.content, job.request.style,
        (job.loras[0].provenance.sha256, job.loras[1].provenance.sha256), job.request.base,
        job.folder / "bundles", job.setup.device, job.setup.family, job.setup.svd_rank,
    )  # fmt: skip
    chosen = job.variants(judges)
    names = slugs([*ANCHORS, *(variant.label for variant in chosen)])[len(ANCHORS) :]
    merged = Variant(DIRECT, method="direct")
    found = [*anchors(kitchen.bundle("direct-merge", merged, tell, "float32").bundle)]
    warnings: list[str] = []
    for i, (name, variant) in enumerate(zip(names, chosen, strict=True)):
        tell("baking", i, len(chosen))
        try:
            baked = kitchen.bundle(name, variant, lambda stage, done, total: None)
        except LorabakeError as error:
            reason = str(error)
            found.append(Way(variant.label, method=variant.method, reason=reason,
                             parameters={**variant.params, **variant.overrides}))  # fmt: skip
            continue
        found.append(way(variant, baked.bundle, judges))
        warnings += [f"{variant.label}: {text}" for text in baked.warnings]
        theirs = tuple(source.sha256 for source in baked.bundle.manifest.sources)
        if theirs != kitchen.sources:
            warnings.append(f"{variant.label}: this bundle was made of other LoRAs")
    tell("baking", len(chosen), len(chosen))
    return found, warnings


@dataclass(frozen=True)
class _Column:
    """A way, and its pictures with why each shows nothing, in the order of prompts and seeds."""

    way: Way
    pictures: tuple[Wanted, ...]
    failures: tuple[str, ...]


class _Easel:
    """Paints one pair's pictures."""

    def __init__(self, job: Job, studio: Studio, tell: Tell, ways: int) -> None:
        self._job, self._studio, self._tell = job, studio, tell
        self._done, self._total = 0, ways * job.inputs.count
        self._notes: list[str] = []
        self.painted = 0

    def column(self, way: Way, name: str) -> _Column:
        """Paint one way's pictures; one that cannot run here has none."""
        folder = self._job.folder / "images" / name
        wanted = tuple(
            self._wanted(way, folder / f"p{i + 1}-s{seed}.png", prompt, seed)
            for i, prompt in enumerate(self._job.inputs.prompts)
            for seed in self._job.inputs.each_seed
        )
        if not way.reason:
            try:
                return _Column(way, wanted, self._paint(way, wanted))
            except AttachError as error:
                way = replace(way, reason=str(error))
        self._progress(len(wanted))
        return _Column(way, wanted, (way.reason,) * len(wanted))

    def references(self, which: int, alone: Way) -> References:
        """The images of a LoRA: those that were given, or what it paints by itself."""
        request, source = self._job.request, self._job.loras[which].provenance
        images = (request.content_images, request.style_images)[which]
        if images is not None:
            return References((images,), None, source.name, source.sha256)
        prompt = self._own_prompt(which)
        folder = self._job.folder / "references" / _ROLES[which]
        wanted = [
            self._wanted(alone, folder / f"s{seed}.png", prompt, seed)
            for seed in range(REFERENCE_SEED, REFERENCE_SEED + REFERENCES)
        ]
        self._total += len(wanted)
        failures = self._paint(alone, wanted)
        good = [x for x, failure in zip(wanted, failures, strict=True) if not failure]
        if len(good) < len(wanted):
            self._notes.append(f"{len(wanted) - len(good)} {_ROLES[which]} references show nothing")
        paths = tuple(x.path.relative_to(self._job.folder).as_posix() for x in good)
        return References(paths, prompt, source.name, source.sha256)

    def warnings(self) -> tuple[str, ...]:
        """What the user should know about prompts and references."""
        missing = without_trigger(self._job.loras, self._job.inputs.prompts)
        return (*missing, *self._notes)

    def _wanted(self, way: Way, path: Path, prompt: str, seed: int) -> Wanted:
        return Wanted(path, prompt, seed, {**self._studio.settings, **way.settings})

    def _paint(self, way: Way, wanted: Sequence[Wanted]) -> tuple[str, ...]:
        before = self._studio.painted
        found = self._studio.paint(
            wanted, way.attach, alone=way.alone, shared=way.shared, done=self._progress
        )
        self.painted += self._studio.painted - before
        return tuple(found)

    def _progress(self, count: int) -> None:
        self._done += count
        self._tell("painting", self._done, self._total)

    def _own_prompt(self, which: int) -> str:
        """What a LoRA was trained with, as far as that is known."""
        request, role = self._job.request, _ROLES[which]
        if told := (request.content_prompt, request.style_prompt)[which]:
            return told
        if words := self._job.loras[which].provenance.trigger_words:
            return ", ".join(words[:3])
        self._notes.append(
            f"nobody says what the {role} LoRA was trained with, so its references are painted of "
            f"the first prompt: give --{role}-prompt or --{role}-images"
        )
        return self._job.inputs.prompts[0]


def _scored(
    job: Job, judges: Judges, columns: Sequence[_Column], references: Sequence[References],
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


def _row(job: Job, column: _Column, i: int, arrays: Mapping[str, Numbers]) -> Row:
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
