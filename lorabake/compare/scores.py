"""Scores of pictures by image encoders, each a mean of cosines over all reference pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..pipelines import pictures
from .judges import Judges
from .statistics import Numbers, harmonic
from .variants import ANCHORS

TITLES = {
    "dino": "DINO", "clip_subject": "CLIP-I", "csd": "CSD", "clip_style": "CLIP-I",
    "clip_text": "CLIP-T", "subject": "subject", "style": "style", "harmonic": "harmonic mean",
    "leak": "leak",
}  # fmt: skip
SUBJECT, STYLE = ("dino", "clip_subject"), ("csd", "clip_style")
MEANINGS = {
    "dino": "cosine of DINO's embeddings to those of the subject images",
    "clip_subject": "cosine of CLIP's image embeddings to those of the subject images",
    "csd": "cosine of CSD's style embeddings to those of the style images",
    "clip_style": "cosine of CLIP's image embeddings to those of the style images",
    "clip_text": "cosine of CLIP's image embedding to that of the prompt",
    "subject": "mean of the picture's scores against the subject images",
    "style": "mean of the picture's scores against the style images",
    "harmonic": "harmonic mean of the picture's subject and style",
    "leak": "DINO cosine to the style images, less what the picture's style explains: the value "
    "on the line from base to style only (same prompt) at its style score. Above 0, what the style "
    "images show came along",
    "dino_style": "cosine of DINO's embeddings to those of the style images; leak is made of it",
}
"""What each number is."""
_AT_ONCE = 16
_REACH = (-1.0, 2.0)
"""How far from base (0) to style only (1) the line of `leak` is believed."""

Paths = Sequence[Sequence[Sequence[Path | None]]]
"""Pictures by variant, prompt and seed; None where there is nothing to see."""


def score(
    judges: Judges,
    paths: Paths,
    prompts: Sequence[str],
    references: tuple[Sequence[str | Path], Sequence[str | Path]],
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Numbers]:
    """All scores that the encoders allow.

    Args:
        judges: The encoders.
        paths: The pictures; the anchors come first, in their order.
        prompts: As many as `paths` has for each variant.
        references: Images, or folders of images, of the subject and of the style.
        done: Told how many more pictures were embedded.

    Returns:
        By name, `[variants, prompts, seeds]`; 0 where there is no picture.

    Raises:
        ImageError: An image cannot be read.
    """
    flat = [path for variant in paths for prompt in variant for path in prompt]
    shape = (len(paths), len(prompts), len(flat) // (len(paths) * len(prompts)))
    there = np.array([path is not None for path in flat])
    found: dict[str, Numbers] = {}

    def put(name: str, values: Numbers) -> None:
        whole = np.zeros(len(flat))
        whole[there] = values
        found[name] = whole.reshape(shape)

    roles = {"dino": ("dino", "dino_style"), "clip": ("clip_subject", "clip_style"),
             "csd": (None, "csd")}  # fmt: skip
    for role, names in roles.items():
        if (see := judges.sees.get(role)) is None:
            continue
        seen = _embedded(see, [path for path in flat if path is not None], done)
        for name, places in zip(names, references, strict=True):
            if name and places:
                put(name, (seen @ _references(see, places).T).mean(1))
        if role == "clip" and judges.reads is not None:
            texts = _unit(judges.reads(prompts))
            which = np.indices(shape)[1].reshape(-1)[there]
            put("clip_text", (seen * texts[which]).sum(1))
    return found | _derived(found, there.reshape(shape))


def _derived(found: Mapping[str, Numbers], there: NDArray[np.bool_]) -> dict[str, Numbers]:
    """Subject, style, their harmonic mean, and leak, as far as what they need is there."""
    made: dict[str, Numbers] = {}
    for name, parts in (("subject", SUBJECT), ("style", STYLE)):
        if have := [found[part] for part in parts if part in found]:
            made[name] = np.mean(have, 0)
    if len(made) == 2:
        made["harmonic"] = harmonic(made["subject"], made["style"])
    if "style" in made and "dino_style" in found:
        made["leak"] = leak(found["dino_style"], made["style"], there)
    return made


def leak(likeness: Numbers, style: Numbers, there: NDArray[np.bool_]) -> Numbers:
    """How much nearer pictures are to the style images than their style explains.

    Of each prompt, base and style only have a mean likeness (DINO) to the style images and a mean
    style. A picture whose style lies between the two is expected to have the likeness that lies as
    far between; leak is what it has beyond that. So style alone is no leak, and both anchors have
    none on average. Beyond the two the line goes on, for as long again on either side.

    Args:
        likeness: DINO cosines to the style images, `[variants, prompts, seeds]`.
        style: Style scores, likewise.
        there: Where there are pictures; elsewhere leak is 0.
    """
    expected = np.zeros_like(likeness)
    for i in range(likeness.shape[1]):
        ends = [_anchor(name, likeness, style, there, i) for name in ("base", "style only")]
        (low, plain), (high, styled) = (end or (0.0, 0.0) for end in ends)
        if None in ends:
            low = high = sum(end[0] for end in ends if end)
        span = styled - plain
        share = ((style[:, i] - plain) / span).clip(*_REACH) if span > 0 else 1.0
        expected[:, i] = low + share * (high - low)
    return np.where(there, likeness - expected, 0.0)


def _anchor(
    name: str, likeness: Numbers, style: Numbers, there: NDArray[np.bool_], prompt: int
) -> tuple[float, float] | None:
    """An anchor's mean likeness and style for a prompt; None if it has no picture."""
    place = (ANCHORS.index(name), prompt)
    seen = there[place]
    return (likeness[place][seen].mean(), style[place][seen].mean()) if seen.any() else None


def _embedded(
    see: Callable[[Tensor], Tensor], paths: Sequence[Path], done: Callable[[int], None]
) -> Numbers:
    """Unit embeddings of pictures, all of one size, `[n, d]`."""
    found: list[Numbers] = []
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        images = torch.stack([pictures.each(path, lambda x: x)[0] for path in some])
        with torch.no_grad():
            found.append(_unit(see(images)))
        done(len(some))
    return np.concatenate(found) if found else np.zeros((0, 1))


def _references(see: Callable[[Tensor], Tensor], places: Sequence[str | Path]) -> Numbers:
    """Unit embeddings of reference images of any size, `[m, d]`."""

    def seen(image: Tensor) -> Numbers:
        with torch.no_grad():
            return _unit(see(image[None]))

    return np.concatenate([view for place in places for view in pictures.each(place, seen)])


def _unit(embeddings: Tensor) -> Numbers:
    x = embeddings.double().cpu()
    return torch.nn.functional.normalize(torch.nan_to_num(x), dim=1).numpy()
