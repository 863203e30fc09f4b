"""From a bundle to plain LoRA files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

from ... import output as outputs
from ...errors import OutputError, RecipeError
from ...runtime import Bundle
from ..find import load
from ..rewrite import family_of
from .about import schedule
from .job import Job, job, stored
from .loss import total
from .report import Exported, LayerError, Part
from .stretch import stretches
from .styles import To
from .wanted import Only, Wanted

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


def export(
    bundle: str | Path,
    output: str | Path,
    to: To = "diffusers",
    *,
    at: Fraction | float | None = None,
    timeline: int | None = None,
    only: Only | None = None,
    steps: int | None = None,
    rank: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a bundle as one plain LoRA, or as several that follow one another in time.

    Where the plan does not change over time the result is exact. Otherwise it is the plan's mean
    over time, the nearest that one LoRA can be, and the report has its error.

    Args:
        bundle: File, folder or hub id.
        output: The file to write; for `peft` the folder. Of a timeline its files' common name.
        to: Key style: `diffusers`, `kohya` or `peft`.
        at: Progress, from 0 to below 1, of the one moment that is wanted.
        timeline: Into how many equal parts the plan is cut, each a LoRA. Neighbours that turn out
            alike become one.
        only: `content` or `style`, to have back that LoRA alone.
        steps: Take the mean over the steps of such a run, not over all progress.
        rank: Compress to so many ranks at most by SVD.
        force: Whether existing files may be replaced.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range, or
            the bundle chooses live.
    """
    started = time.perf_counter()
    wanted = Wanted(to, at, timeline, only, steps, rank)
    found = load(bundle)
    family, path = family_of(found.path, found.manifest), _named(output, wanted)
    cut = stretches(found, wanted)
    names = [path] if timeline is None else [_numbered(path, i, len(cut)) for i in range(len(cut))]
    dtype = stored(found)
    jobs = [job(found, family, wanted, x, name, dtype) for x, name in zip(cut, names, strict=True)]
    _check_rank(rank, jobs)
    sidecar = None if timeline is None else path.with_name(f"{_stem(path)}-timeline.json")
    _check_paths(found, jobs, sidecar, force=force)
    found.verify()  # or what is written of a damaged file would look sound
    count = sum(len(sheet.modules) for one in jobs for sheet in one.sheets)
    tell, done = progress or (lambda stage, done, total: None), iter(range(1, count + 1))
    with ExitStack() as whole:
        # What is entered first is in its place last.
        beside = whole.enter_context(outputs.replacing(sidecar.resolve())) if sidecar else None
        parts = tuple(
            _part(one, whole, lambda: tell("exporting", next(done), count)) for one in jobs
        )
        if beside is not None:
            beside.write(json.dumps(schedule(found, parts), indent=2).encode())
    return Exported(
        output=str(output),
        to=to,
        kind=wanted.kind,
        method=found.manifest.method,
        family=family.name,
        dtype=str(dtype).removeprefix("torch."),
        parts=parts,
        sidecar=str(sidecar or ""),
        warnings=_warnings(found, wanted),
        seconds=round(time.perf_counter() - started, 3),
    )


def _named(output: str | Path, wanted: Wanted) -> Path:
    """The output's path; refused if there is no name in it to make others of."""
    path, slash = Path(output), str(output).endswith("/")
    if (slash and wanted.to != "peft") or (wanted.timeline is not None and not path.name):
        raise OutputError("is not a file name", where=str(output), advice="Name the file to write")
    return path


def _numbered(path: Path, i: int, count: int) -> Path:
    """`plan.safetensors` → `plan-01-of-12.safetensors`."""
    width = max(2, len(str(count)))
    suffix = path.name.removeprefix(_stem(path))
    return path.with_name(f"{_stem(path)}-{i + 1:0{width}}-of-{count:0{width}}{suffix}")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".safetensors")


def _check_rank(rank: int | None, jobs: list[Job]) -> None:
    """Refuse a rank that compresses nothing."""
    largest = max(layer.rank for one in jobs for layer in one.common.layers.values())
    if rank is not None and rank >= largest:
        raise RecipeError(
            f"{rank} is not less than what the layers have, {largest} at most",
            where="rank",
            advice="Give a smaller one, or leave it away",
        )


def _check_paths(bundle: Bundle, jobs: list[Job], sidecar: Path | None, *, force: bool) -> None:
    for one in jobs:
        for path in one.paths:
            folder = path.parent
            if folder == one.target.parent or folder.is_dir():
                outputs.check(path, force=force, inputs=(bundle.path,))
            elif folder.exists():
                outputs.folder(folder)  # says what is in the way
            elif not one.target.exists():
                outputs.check(one.target)  # it will be made, but not what it is in
    if sidecar is not None:
        outputs.check(sidecar, force=force, inputs=(bundle.path,))


def _part(one: Job, whole: ExitStack, told: Callable[[], None]) -> Part:
    losses = one.write(whole, told)
    return Part(
        files=tuple(map(str, one.paths)),
        start=float(one.stretch.start),
        end=float(one.stretch.end),
        ranks=one.common.ranks,
        plan_error=total(plan for plan, _ in losses.values()).relative,
        rank_error=total(rank for _, rank in losses.values()).relative,
        layers=tuple(
            LayerError(str(x.name), one.common.live(x), *(y.relative for y in losses[x.name]))
            for x in one.stretch.layers
        ),
    )


def _warnings(bundle: Bundle, wanted: Wanted) -> tuple[str, ...]:
    if wanted.only is not None:
        return ()
    found: list[str] = []
    if bundle.manifest.guidance is not None:
        found.append(
            "the bundle's guidance of the latents is not in the file, no plain LoRA has one"
        )
    if bundle.manifest.half != "both":
        found.append(
            "the bundle's LoRAs act in the conditional half of guidance alone, the file acts in "
            "both halves, as every plain LoRA does by itself"
        )
    return tuple(found)
