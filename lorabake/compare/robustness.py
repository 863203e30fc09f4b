"""Does a LoRA still work on half of its layers, or at half strength?

The methods that divide layers between two LoRAs (K-LoRA and its kin) build on it: figure 3 of
arXiv 2502.18461 keeps the subject with a random half of the layers. LoRAs that were trained long,
on many layers, have it; small ones trained for a few hundred steps may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .. import pipelines
from ..errors import OverrideError
from ..pipelines import csd
from ..pipelines import encoders as vit
from ..pipelines.generate import gated
from ..pipelines.render import together
from ..runtime import Bundle
from ..runtime.manifest import DENOISERS, Layer
from ..runtime.overrides import STRENGTHS
from ..runtime.plan import CONTENT, STYLE, Table
from .judges import Names, usual

ROBUST = 0.5
"""Share of the effect that must be left on half of the layers."""
_BINS = 50
_ROLES = ("content", "style")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Robustness:
    """What is left of one LoRA's effect when it works in part.

    Effect is likeness to the picture of the whole LoRA with the same seed, by an encoder's cosine,
    between that of the base model (0) and that of the whole LoRA (1); means over the seeds.

    Attributes:
        role: `content` or `style`.
        name: Of the LoRA.
        prompt: What was painted.
        encoder: Name of the encoder: DINO for content, the style descriptor for style.
        half_of_layers: On a random half of the layers, drawn anew for every part of the run.
        half_strength: On all layers at strength 0.5.
        likeness: Cosine between base model and whole LoRA; near 1 the LoRA hardly does anything.
    """

    role: str
    name: str
    prompt: str
    encoder: str
    half_of_layers: float
    half_strength: float
    likeness: float

    @property
    def robust(self) -> bool:
        """Whether most of the effect is left on half of the layers."""
        return self.half_of_layers >= ROBUST

    def __str__(self) -> str:
        kind = "robust" if self.robust else "fragile"
        return (
            f"{self.role:<8} {self.half_of_layers:.0%} of its effect on half of the layers, "
            f"{self.half_strength:.0%} at half strength: {kind} "
            f"({self.encoder}, {self.prompt!r})"
        )


def robustness(
    bundle: Bundle,
    base: str | Path,
    *,
    prompts: Sequence[str] = ("", ""),
    encoders: Names | None = None,
    seeds: int = 8,
    device: torch.device,
    progress: Progress = lambda done, total: None,
    **options: Any,  # noqa: ANN401 - whatever the pipeline's call takes
) -> tuple[Robustness, Robustness]:
    """Measure both LoRAs of a bundle, each alone with its own prompt.

    Args:
        bundle: Its plan does not matter, only the two LoRAs in it.
        base: Folder in diffusers format, or hub id.
        prompts: Of content and style; empty for the trigger words in the bundle.
        encoders: Folder or hub id of `dino` and `csd`, where the usual ones are not wanted.
        seeds: Pictures of each kind.
        device: Where to compute.
        progress: Called as `progress(calls done, calls in all)`.
        options: Further arguments of the pipeline's call, for example `guidance_scale`.

    Raises:
        BaseModelError: The base model or an encoder cannot be loaded.
        OverrideError: The bundle holds no plain LoRAs, or one has no prompt.
    """
    if bundle.manifest.columns:
        raise OverrideError(
            "this bundle's LoRAs are weighted column by column, so they are not those of its files",
            where=str(bundle.path), advice="Make one of the same two with --method direct",
        )  # fmt: skip
    told = [given or _words(bundle, i) for i, given in enumerate(prompts)]
    names = usual(base) | {role: str(name) for role, name in (encoders or {}).items() if name}
    sees = (vit.load(names["dino"], device=device), csd.load(names["csd"], device=device))
    pipe = pipelines.load(base, device=device)
    found: list[Robustness] = []
    for i, (role, encoder) in enumerate(zip(_ROLES, ("dino", "csd"), strict=True)):
        images = _painted(
            bundle, pipe, i, told[i], seeds, lambda n, i=i: progress(4 * i + n, 8), options
        )
        unit = [functional.normalize(sees[i](x).float(), dim=1) for x in images]
        base_like, half, weak = ((unit[1] * other).sum(1) for other in (unit[0], *unit[2:]))
        room = (1 - base_like).clamp(min=1e-6)
        found.append(
            Robustness(
                role, bundle.manifest.sources[i].name, told[i], vit.recorded(names[encoder]),
                half_of_layers=float(((half - base_like) / room).mean()),
                half_strength=float(((weak - base_like) / room).mean()),
                likeness=float(base_like.mean()),
            )
        )  # fmt: skip
    return found[0], found[1]


def _words(bundle: Bundle, source: int) -> str:
    words = bundle.manifest.sources[source].trigger_words
    if not words:
        raise OverrideError(
            f"the {_ROLES[source]} LoRA names no trigger words", where=str(bundle.path),
            advice=f"Say what it was trained with: --{_ROLES[source]}-prompt",
        )  # fmt: skip
    return words[0]


def _painted(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    source: int,
    prompt: str,
    seeds: int,
    done: Callable[[int], None],
    options: dict[str, Any],
) -> list[Tensor]:
    """Pictures [n, 3, h, w] of the base, the whole LoRA, half of its layers, half its strength."""
    whole = gated(bundle, (1.0, 0.0) if source == CONTENT else (0.0, 1.0))
    own, other = STRENGTHS[source], STRENGTHS[1 - source]
    ways: list[tuple[Bundle | None, dict[str, Any]]] = [
        (None, {}), (whole, {}), (_halved(whole), {other: 0.0}), (whole, {own: 0.5}),
    ]  # fmt: skip
    images: list[Tensor] = []
    for one, strengths in ways:
        with one.attach(pipe, **strengths) if one else nullcontext():
            pixels = together(pipe, prompt, range(seeds), **options)
        images.append(torch.from_numpy(np.moveaxis(pixels, 3, 1)))
        done(len(images))
    return images


def _halved(bundle: Bundle) -> Bundle:
    """Each layer of a denoiser applies one of the two, by a coin for every part of the run.

    A text encoder knows no progress and stays whole.
    """

    def thrown(layer: Layer) -> Layer:
        if layer.component not in DENOISERS:
            return layer
        coin = Random(str(layer))  # hashes text by SHA-512: the same in every process
        return replace(
            layer, rule=Table(tuple(coin.choice((CONTENT, STYLE)) for _ in range(_BINS)))
        )

    layers = tuple(thrown(layer) for layer in bundle.manifest.layers)
    return replace(bundle, manifest=replace(bundle.manifest, layers=layers))
