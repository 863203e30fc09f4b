"""References of both LoRAs as image encoders see them: painted, or given as images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BaseModelError
from ..lora.pairs import Pair
from ..pipelines import encoders, pictures
from ..runtime.guidance import Reference
from ..training.portraits import portraits
from ..training.scene import Wanted
from .method import Context

Encoders = tuple[encoders.Encoder, encoders.Encoder]
"""CLIP and DINO."""
View = tuple[Tensor, Tensor]
"""One picture's embeddings, float64 of length 1."""


def references(
    pairs: Sequence[Pair], wanted: Wanted, names: tuple[str, str], context: Context
) -> tuple[Reference, Reference]:
    """One reference of content, one of style; each LoRA without images paints its own.

    Args:
        pairs: Layers of the two LoRAs.
        wanted: Their prompts or images, and how they paint.
        names: The CLIP and the DINO encoder, folders or hub ids.
        context: Its base model is needed where a LoRA paints.

    Returns:
        Embeddings of length 1 in float32; of several images, their mean's direction.

    Raises:
        BaseModelError: An encoder or the base model cannot be loaded or used.
        ImageError: An image cannot be used.
        PairError: The base model lacks some of the layers.
    """
    for images in wanted.images:
        if images is not None:  # what is wrong is told before large models are loaded
            pictures.read(images, 1)
    seers = _loaded(names, context)
    given = [[] if images is None else _given(seers, images) for images in wanted.images]
    painted: Sequence[Tensor | None] = (None, None)
    if context.base is not None and None in wanted.images:
        painted = portraits(pairs, context.base, wanted, context.device, context.tell)
    content, style = (
        _mean(views, None, None)
        if picture is None
        else _mean([_view(seers, picture)], prompt, wanted.seed)
        for prompt, views, picture in zip(wanted.prompts, given, painted, strict=True)
    )
    return content, style


def _loaded(names: tuple[str, str], context: Context) -> Encoders:
    found: list[encoders.Encoder] = []
    for i, name in enumerate(names):
        context.tell("loading the encoders", i, len(names))
        found.append(encoders.load(name, device=context.device))
    context.tell("loading the encoders", len(names), len(names))
    return found[0], found[1]


def _given(seers: Encoders, images: str) -> list[View]:
    return pictures.each(images, lambda image: _view(seers, image[None]))


def _view(seers: Encoders, picture: Tensor) -> View:
    """Of a picture `[1, 3, height, width]` in [0, 1]."""
    with torch.no_grad():
        clip, dino = (_unit(encoder(picture)[0]) for encoder in seers)
    return clip, dino


def _mean(views: Sequence[View], prompt: str | None, seed: int | None) -> Reference:
    clip, dino = (_unit(torch.stack(side).mean(0)) for side in zip(*views, strict=True))
    return Reference(tuple(clip.float().tolist()), tuple(dino.float().tolist()), prompt, seed)


def _unit(embedding: Tensor) -> Tensor:
    found = functional.normalize(embedding.double().cpu(), dim=0)
    if not found.any() or not found.isfinite().all():
        raise BaseModelError(
            "an encoder gives 0, NaN or Inf for a reference",
            where="clip or dino",
            advice="Name other encoders, or other references",
        )
    return found
