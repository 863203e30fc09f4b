"""Images from a bundle, and beside them what its parts alone would give."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from ..runtime import Bundle, Replay
from ..runtime.overrides import STRENGTHS, strength
from ..runtime.plan import Constant, Half
from ..runtime.report import Report
from .embed import Encoder
from .encoders import encoders
from .load import load
from .render import render


def generate(
    bundle: Bundle,
    base: str | Path,
    prompt: str,
    *,
    seeds: Sequence[int] = (0,),
    compare: bool = False,
    device: torch.device,
    dtype: torch.dtype | None = None,
    strengths: tuple[float, float] = (1.0, 1.0),
    guidance: bool = True,
    half: Half | None = None,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    told: Callable[[Report], None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> dict[str, list[Image]]:
    """Load a base model, replay a bundle in it and render.

    Args:
        bundle: What to replay.
        base: Folder in diffusers format, or hub id.
        prompt: Text, with the trigger words in it.
        seeds: One per image.
        compare: Whether to render the `variants` beside the bundle as well.
        device: Where to compute.
        dtype: Of the base model's weights; None is float32 on a CPU and bfloat16 elsewhere.
        strengths: Of content and style, on top of those in the bundle.
        guidance: Whether the latents are guided, if the bundle has references for that.
        half: In which half of guidance LoRAs act, also those of the `variants`; None is the
            bundle's own.
        clip: Folder or hub id of the CLIP encoder for it, instead of the one the bundle names.
        dino: Likewise of the DINO encoder.
        told: Called with the report of the bundle's own images.
        progress: Called as `progress(images done, images in all)`.
        options: Further arguments of the pipeline's call, for example `guidance_scale`.

    Returns:
        Label → one image per seed; only the method's name as label unless `compare`.

    Raises:
        BaseModelError: The base model cannot be loaded, or not be called with these options.
        AttachError: The bundle does not fit it, or its latents cannot be guided there.
        OverrideError: A strength or the number of steps is out of range.
    """
    for name, value in zip(STRENGTHS, strengths, strict=True):
        strength(name, value)  # now, rather than after a large model is loaded
    guided = guidance and (bundle.manifest.guidance is not None or clip or dino)
    seeing = encoders(bundle, clip, dino, device=device) if guided else {}
    pipe = load(base, device=device, dtype=dtype)
    wanted = variants(bundle) if compare else {bundle.manifest.method: bundle}
    images: dict[str, list[Image]] = {}
    done, total = 0, len(wanted) * len(seeds)
    for label, variant in wanted.items():
        images[label] = []
        with _attached(variant, pipe, strengths, guidance, half, seeing) as replay:
            said = _note(replay)
            for seed in seeds:
                images[label] += render(pipe, prompt, [seed], **options)
                done += 1
                progress(done, total)
            if told is not None and variant is bundle and replay is not None:
                told(replay.report())
            if variant is bundle and not said and (note := _note(replay)):
                warnings.warn(note, stacklevel=2)  # rendering is quiet
    return images


def _note(replay: Replay | None) -> str:
    return replay.report()["note"] if replay is not None else ""


def variants(bundle: Bundle) -> dict[str, Bundle | None]:
    """A bundle between its anchors, in the order of a comparison; None is the base model alone."""
    return {
        "base": None,
        "content only": gated(bundle, (1.0, 0.0)),
        "style only": gated(bundle, (0.0, 1.0)),
        "direct merge": gated(bundle, (1.0, 1.0)),
        bundle.manifest.method: bundle,
    }


def gated(bundle: Bundle, gates: tuple[float, float]) -> Bundle:
    """The same factors under a plan that applies content and style with these gates throughout."""
    layers = tuple(replace(layer, rule=Constant(gates)) for layer in bundle.manifest.layers)
    plain = {"scale": None, "selection": None, "guidance": None}
    return replace(bundle, manifest=replace(bundle.manifest, layers=layers, **plain))


def _attached(
    bundle: Bundle | None,
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    strengths: tuple[float, float],
    guidance: bool,
    half: Half | None,
    seeing: Mapping[str, Encoder],
) -> contextlib.AbstractContextManager[Replay | None]:
    if bundle is None:
        return contextlib.nullcontext()
    return bundle.attach(
        pipe, content_strength=strengths[0], style_strength=strengths[1],
        guidance=guidance, half=half, encoders=seeing if bundle.manifest.guidance else None,
    )  # fmt: skip
