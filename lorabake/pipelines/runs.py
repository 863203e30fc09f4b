"""Runs: every prompt with every seed, each on its own, and how far two sets of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from ..runtime import Bundle
from ..runtime.report import Report
from .render import render


@dataclass(frozen=True)
class Difference:
    """How far images are from others of the same prompts and seeds, in levels from 0 to 255.

    Attributes:
        mean: Mean over the images of the mean absolute difference over pixels and channels.
        error: Standard error of that mean, the runs taken as independent; None for one image.
    """

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def runs(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    prompts: Sequence[str],
    seeds: Sequence[int],
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> Iterator[tuple[Image, Report]]:
    """Render every prompt with every seed, prompt by prompt, the latents not guided.

    Args:
        bundle: What to replay; it is attached anew for each image.
        pipe: A loaded text-to-image pipeline.
        prompts: Texts.
        seeds: The same for each of them.
        options: Arguments of the pipeline's call.

    Yields:
        An image, and what was applied for it.

    Raises:
        AttachError: The bundle does not fit the pipeline.
        BaseModelError: The pipeline cannot be called with these options.
        OverrideError: There are more steps than the scheduler has.
    """
    for prompt in prompts:
        for seed in seeds:
            with bundle.attach(pipe, guidance=False) as replay:
                (image,) = render(pipe, prompt, [seed], **options)
                report = replay.report()
            yield image, report


def difference(images: Iterable[Image], others: Iterable[Image]) -> Difference:
    """How far images are from others, pair by pair, all of one size."""
    each = [
        float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())
        for a, b in zip(images, others, strict=True)
    ]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
    return Difference(statistics.fmean(each), error)
