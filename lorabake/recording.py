"""Recording: what a bundle chooses live, run on some prompts and seeds, becomes a static plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from . import output as outputs
from . import pipelines, runtime
from .bundle import load
from .bundle.agreement import agreement, followed
from .bundle.rewrite import check_rewritable, rewrite
from .bundle.votes import Votes, table, votes
from .device import device as device_named
from .errors import AttachError, BundleError
from .inputs import Inputs, several
from .pipelines.generate import gated
from .pipelines.runs import difference, runs
from .recorded import Recorded
from .runtime import Bundle
from .runtime.manifest import Manifest
from .runtime.plan import Live, Table
from .runtime.report import Report

METHOD = "dynamic-recorded"

Progress = Callable[[str, int, int], None]
Run = tuple[Image, Report]


def record(
    bundle_path: str | Path,
    output: str | Path,
    base: str | Path,
    prompts: str | Sequence[str],
    seeds: int = 8,
    first_seed: int = 0,
    steps: int = 25,
    bins: int | None = None,
    *,
    guidance_scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Recorded:
    """Turn a bundle that chooses live (arXiv 2602.15539, FLS) into a static one.

    Every prompt is rendered with every seed, one image at a time, while the layers choose; each
    decision is a vote, of each half of classifier-free guidance too. The new bundle has the same
    tensors, and for each layer that chose a table of the majority, over equal parts of progress:
    a tie is content, a part without votes takes after the nearest, a layer without any is content.
    Other layers keep their rules. The latents are not guided, and the new bundle has no guidance.

    Args:
        bundle_path: File, folder or hub id of a bundle that chooses live.
        output: The bundle to write.
        base: Base model, a folder in diffusers format or a hub id.
        prompts: What is rendered, with the trigger words in it; no two alike.
        seeds: How many images of each prompt.
        first_seed: The first one's seed; the next has the next.
        steps: Denoising steps.
        bins: Into how many parts progress is cut, at most `steps`; one for each position of the
            scheduler's list if not given, which are the steps with most schedulers.
        guidance_scale: Of classifier-free guidance; None is the pipeline's own.
        width: Of the images, in pixels; None, with `height`, is the pipeline's own.
        height: Likewise.
        device: Where to compute.
        dtype: Of the base model's weights; None is float32 on a CPU and bfloat16 elsewhere.
        force: Whether an existing output may be replaced.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range, or
            the bundle chooses nothing live.
    """
    started = time.perf_counter()
    inputs = Inputs(several(prompts), seeds, first_seed, steps, bins, guidance_scale, width, height)
    found = load(bundle_path)
    target = outputs.check(output, force=force, inputs=(found.path, Path(base)))
    live = _live(found)
    where = device_named(device)
    check_rewritable(found)
    found.verify()  # or a damaged file would get a digest that holds

    pipe = pipelines.load(base, device=where, dtype=dtype)
    run = partial(runs, pipe=pipe, prompts=inputs.prompts, seeds=inputs.each_seed, **inputs.options)
    tell: Progress = progress or (lambda stage, done, total: None)
    images, reports = zip(*_told(run(found), partial(tell, "recording"), inputs.count), strict=True)
    cast = votes(reports, live)
    unseen = _unseen(cast, base)
    plan = table(cast, bins or cast.positions)
    params = inputs.params(plan.shape[1], base)
    static = replace(found, manifest=_manifest(found.manifest, live, plan, params))
    near, far = (
        difference(images, (x for x, _ in _told(run(way), partial(tell, stage), inputs.count)))
        for stage, way in (("comparing", static), ("direct merge", gated(found, (1.0, 1.0))))
    )
    digest = _write(target, static)
    return Recorded(
        output=str(output),
        method=METHOD,
        params=static.manifest.params,
        layers=len(static.manifest.layers),
        live=len(live),
        unseen=unseen,
        runs=inputs.count,
        style=float(plan.double().mean()),
        followed=followed(cast, plan),
        agreement=agreement(cast, [i // seeds for i in range(inputs.count)]),
        difference=near,
        direct=far,
        warnings=_warnings(found.manifest, unseen),
        digest=digest,
        seconds=round(time.perf_counter() - started, 3),
    )


def _live(found: Bundle) -> list[int]:
    """Which layers choose live.

    Raises:
        BundleError: None does.
    """
    manifest = found.manifest
    live = [i for i, layer in enumerate(manifest.layers) if isinstance(layer.rule, Live)]
    if not live:
        raise BundleError(
            f"a bundle of the method {manifest.method} chooses nothing live, so there is nothing "
            "to record",
            where=str(found.path),
            advice="It has its plan already; give one made with --method dynamic",
        )
    return live


def _told(runs: Iterable[Run], tell: Callable[[int, int], None], total: int) -> Iterator[Run]:
    """The runs; `tell` hears of each when it is done."""
    for done, run in enumerate(runs, 1):
        tell(done, total)
        yield run


def _unseen(cast: Votes, base: str | Path) -> int:
    """How many layers nobody saw choose.

    Raises:
        AttachError: All of them.
    """
    seen = cast.counts().sum((0, 2)) > 0
    if not seen.any():
        raise AttachError(
            "none of the layers that choose live has chosen: they were not computed, or their "
            "features are not numbers",
            where=str(base),
            advice="Use the base model that the LoRAs were trained on, with its own guidance, in "
            "float32 or bfloat16",
        )
    return int((~seen).sum())


def _manifest(
    of: Manifest, live: Sequence[int], plan: Tensor, params: Mapping[str, Any]
) -> Manifest:
    """The manifest with a table, `[live, bins]`, for each layer that chose."""
    tables = {i: Table(tuple(row)) for i, row in zip(live, plan.tolist(), strict=True)}
    layers = [replace(x, rule=tables.get(i, x.rule)) for i, x in enumerate(of.layers)]
    selection = asdict(of.selection) if of.selection else {}
    return replace(
        of, method=METHOD, params={**selection, **params}, layers=tuple(layers), selection=None,
        guidance=None,
    )  # fmt: skip


def _write(target: Path, static: Bundle) -> str:
    """Write and read back beside the target; only a bundle that holds takes its place."""
    with outputs.replacing(target) as file:
        digest = rewrite(file, static.path, static.manifest)
        runtime.read(Path(file.name), verify=True)
    return digest


def _warnings(of: Manifest, unseen: int) -> tuple[str, ...]:
    found: list[str] = []
    if of.guidance is not None:
        found.append("the latents were not guided meanwhile, and the new bundle has no guidance")
    if unseen:
        found.append(f"layers that no run saw choose are content throughout: {unseen} of them")
    return tuple(found)
