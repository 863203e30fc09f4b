"""What an app needs in order to offer bundles: a cache, strengths, progress, one error to show."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL.Image import Image

import lorabake
from lorabake.errors import UserError

# A replay changes the pipeline's own weights and detaches at its end: one picture at a time for
# each pipeline. An app with several pipelines may keep one lock for each.
BUSY = Lock()


class RenderError(Exception):
    """Its text is meant for the person at the screen: what, where, and what to do."""


@lru_cache(maxsize=8)
def opened(path: Path, changed: int) -> lorabake.Bundle:
    """An open bundle; one that was written again in the meantime is opened again."""
    return lorabake.load(path)


def render(
    pipe: Any,  # noqa: ANN401 - any pipeline of diffusers
    path: Path,
    prompt: str,
    *,
    content_strength: float = 1.0,
    style_strength: float = 1.0,
    steps: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Image:
    """Paint one picture with a bundle, and leave the pipeline as it was.

    Args:
        pipe: A pipeline that is loaded and on its device.
        path: The bundle's file.
        prompt: With the trigger words; `lorabake inspect` shows them.
        content_strength: Of the subject's LoRA.
        style_strength: Of the style's LoRA.
        steps: Any number; the plan fits itself to it.
        seed: Of the noise.
        progress: Called as `progress(steps done, steps in all)`.

    Raises:
        RenderError: The file is no bundle, or not one for this pipeline.
    """

    def stepped(_: object, step: int, __: object, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(step + 1, steps)
        return tensors

    try:
        bundle = opened(path, path.stat().st_mtime_ns if path.exists() else 0)
        with (
            BUSY,
            bundle.attach(pipe, content_strength=content_strength, style_strength=style_strength),
        ):
            return pipe(
                prompt,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=stepped,
            ).images[0]
    except UserError as error:
        raise RenderError(str(error)) from error
