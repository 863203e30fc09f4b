"""What goes to the hub for a bundle: the file, its card, a picture of the plan, pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError, RecipeError, shortened
from ..lora.source import WEIGHTS
from ..place import expanded, kind
from ..runtime import Bundle
from ..runtime.plan import Constant, Live
from . import card, facts, licences
from .markdown import one_line

CARD = "README.md"
_FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_STEPS = 50
"""That the picture of the plan has."""

Files = Mapping[str, bytes | Path]
"""What goes into a repository, by the path there."""


class Release(NamedTuple):
    """A repository to be: its files, what its card says, and what the user should know of that."""

    files: Files
    card: card.Card
    warnings: tuple[str, ...]


def release(
    bundle: Bundle,
    repo: str,
    images: Sequence[str | Path],
    prompts: Sequence[str],
    prompt: str | None,
    license: str | None,
) -> Release:
    """Put it together; arguments as of `push`, with one prompt for each image or none.

    Raises:
        RecipeError: There are other numbers of prompts and images.
        ImageError: An image cannot be used.
    """
    if len(prompts) not in (0, len(images)):
        raise RecipeError(
            f"there are {len(prompts)} prompts for {len(images)} images",
            advice="Give one for all of them, or one for each",
        )
    manifest = bundle.manifest
    base, *told = facts.base_model(manifest)
    if prompt is None:
        prompt, about = facts.instance_prompt(manifest)
        told.append(about)
    licence, *remarks = _licence(bundle, license)
    pictures = {f"images/{i}.{_format(one)}": expanded(one) for i, one in enumerate(images, 1)}
    plan, share = _plan(bundle)
    said = card.Card(
        repo, base, licence, license is not None, one_line(prompt or "") or None,
        [(path, one_line(text)) for path, text in
         zip(pictures, prompts or [prompt or ""] * len(images), strict=True)],
        share, remarks,
    )  # fmt: skip
    files: dict[str, bytes | Path] = {
        WEIGHTS: bundle.path, CARD: card.text(manifest, said).encode(),
        **({card.PLAN: plan} if share else {}), **pictures,
    }  # fmt: skip
    return Release(files, said, (*filter(None, told), *remarks))


def _licence(bundle: Bundle, given: str | None) -> tuple[licences.Licence, *tuple[str, ...]]:
    """The licence, and remarks on it."""
    stated = {source.role: source.license for source in bundle.manifest.sources}
    strictest, remarks = licences.stricter(stated)
    if given is None:
        return strictest, *remarks
    chosen = licences.of(given)
    if chosen.rank < strictest.rank and strictest.terms < licences.Terms.UNKNOWN:
        remarks = (*remarks, f"{chosen.name} is laxer than {strictest.name}, that of a source")
    return chosen, *remarks


def _plan(bundle: Bundle) -> tuple[bytes, dict[str, float] | None]:
    """A picture of the plan and its shares; without these if there is nothing to see in it."""
    from .. import plots

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / card.PLAN
        share = plots.plot(bundle, path, steps=_STEPS)
        picture = path.read_bytes()
    rules = (layer.rule for layer in bundle.manifest.layers)
    planned = bundle.manifest.columns or not all(isinstance(x, Constant | Live) for x in rules)
    # A layer that one LoRA lacks is that of the other, which alone is no plan.
    parted = share["content"] > 0 and share["style"] > 0 and not (share["both"] or "live" in share)
    return picture, share if planned or parted else None


def _format(image: str | Path) -> str:
    """The suffix of a picture that a page can show, which it is looked at for."""
    from PIL import Image

    where = str(image)
    if kind(image) != "file":
        raise ImageError("is not a file", where=where, advice="Name a picture")
    try:
        with Image.open(expanded(image)) as found:
            found.verify()
            suffix = _FORMATS.get(found.format or "")
    except Exception as error:  # Pillow raises a dozen types for a damaged one
        what = shortened(str(error), 60).rstrip(".")
        raise ImageError(f"is no picture that can be read ({what})", where=where) from error
    if suffix is None:
        raise ImageError("is not PNG, JPEG or WebP", where=where, advice="Convert it")
    return suffix
