"""Whole images of every way in turns, so that whatever slows the machine down hits all alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from ...errors import OverrideError, UserError
from ...runtime import Bundle
from .layers import device, roots
from .machine import machine
from .measure import Measure, Samples
from .memory import settled
from .result import Result, Row
from .ways import LIVE, WAYS, Way


def compare(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    bundle: Bundle,
    draw: Callable[[int], str],
    *,
    steps: Sequence[int] = (25, 50),
    repeats: int = 3,
    compiled: bool = False,
    ways: Sequence[Way] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Measure the ways to apply a bundle's LoRAs; the pipeline is as it was afterwards.

    Args:
        pipe: A loaded pipeline.
        bundle: What to replay in it.
        draw: Paints one image in that many steps with the pipeline; returns its size in words.
        steps: Numbers of steps of the images.
        repeats: Rounds; each way paints one image of each number of steps in each.
        compiled: Whether to put the denoiser under torch.compile. Then each way paints all of its
            images in a row, because the next way needs other graphs.
        ways: The rows of the table; without the floor there are no ratios. By default those that
            the bundle can be replayed in.
        progress: Called as `progress(measurements done, measurements in all)`.

    Raises:
        AttachError: The bundle does not fit the pipeline.
        OverrideError: `steps` or `repeats` is out of range.
    """
    for name, values in (("steps", tuple(steps)), ("repeats", (repeats,))):
        if not values or any(value < 1 for value in values):
            raise OverrideError("give whole numbers above 0", where=name)
    ways = ways or (LIVE if bundle.manifest.live else WAYS)
    rounds, in_a_row = (1, repeats) if compiled else (repeats, 1)
    samples = {way.key: Samples() for way in ways}
    with torch.no_grad(), settled():
        with bundle.attach(
            pipe, guidance=False
        ) as replay:  # also refuses a bundle that does not fit
            size, held = draw(min(steps)), replay.report()["memory"]
        where = device(bundle, pipe)
        with _graphs(pipe, list(roots(bundle, pipe)) if compiled else []):
            measure = Measure(pipe, bundle, draw, tuple(steps), where, in_a_row, compiled=compiled)
            for i in range(rounds):
                for j, way in enumerate(ways if i % 2 == 0 else ways[::-1]):
                    _measured(measure, way, samples[way.key], compiled=compiled)
                    progress(i * len(ways) + j + 1, rounds * len(ways))
    floor = samples["floor"].images if "floor" in samples else {}
    root = next(iter(roots(bundle, pipe).values()))
    return Result(
        machine=machine(where, root, size, compiled=compiled),
        steps=tuple(steps),
        repeats=repeats,
        rows=tuple(_row(way, samples[way.key], floor) for way in ways),
        loras=held["loras"],
        kept=held["kept"],
    )


def _measured(measure: Measure, way: Way, samples: Samples, *, compiled: bool) -> None:
    """Measure one way once more, unless it has failed already."""
    if samples.reason:
        return
    if compiled:
        torch.compiler.reset()
    try:
        measure(way, samples)
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:
        if way.key == "base":  # then it is the model or its options, and no other way will run
            raise
        what = error.what if isinstance(error, UserError) else "not enough memory"
        samples.reason = " ".join(what.split())


def _row(way: Way, samples: Samples, floor: dict[int, list[float]]) -> Row:
    row = Row(way.key, way.label, None, {}, {}, None, None, None, False, samples.reason)
    if samples.reason:
        return row
    image = {count: median(found) for count, found in samples.images.items()}
    return replace(
        row,
        step=median(samples.steps),
        image=image,
        ratio={n: image[n] / median(found) for n, found in floor.items()},
        memory=round(median(samples.memory)) if samples.memory else None,
        attach=median(samples.attach),
        detach=median(samples.detach),
        extrapolated=samples.extrapolated,
    )


@contextlib.contextmanager
def _graphs(pipe: Any, names: Sequence[str]) -> Generator[None]:  # noqa: ANN401 - as above
    """These components under torch.compile."""
    originals = {name: getattr(pipe, name) for name in names}
    try:
        for name, module in originals.items():
            setattr(pipe, name, torch.compile(module))
        yield
    finally:
        for name, module in originals.items():
            setattr(pipe, name, module)
        if originals:
            torch.compiler.reset()
