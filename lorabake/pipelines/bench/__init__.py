"""What replay costs: the ways to apply a pair of LoRAs, measured side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...runtime import Bundle
from ..load import load
from ..render import render
from .compare import compare
from .result import Result, Row
from .table import markdown, text

__all__ = ["Result", "Row", "bench", "compare", "markdown", "text"]


def bench(
    bundle: Bundle,
    base: str | Path,
    prompt: str,
    *,
    steps: int = 25,
    repeats: int = 3,
    compiled: bool = False,
    device: torch.device,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> Result:
    """Load a base model and measure whole images with a bundle in it, from text to pixels.

    Args:
        bundle: What to replay.
        base: Folder in diffusers format, or hub id.
        prompt: Text of every image.
        steps: Of every image.
        repeats: Rounds; each way paints one image in each.
        compiled: Whether to measure under torch.compile.
        device: Where to compute.
        dtype: Of the base model's weights; None is float32 on a CPU and bfloat16 elsewhere.
        progress: Called as `progress(measurements done, measurements in all)`.
        options: Further arguments of the pipeline's call, for example `width`.

    Raises:
        BaseModelError: The base model cannot be loaded, or not be called with these options.
        AttachError: The bundle does not fit it.
        OverrideError: The number of steps or of repeats is out of range.
    """
    pipe = load(base, device=device, dtype=dtype)

    def draw(count: int) -> str:
        (image,) = render(pipe, prompt, [0], num_inference_steps=count, **options)
        return f"{image.width} × {image.height}"

    return compare(
        pipe, bundle, draw, steps=(steps,), repeats=repeats, compiled=compiled, progress=progress
    )
