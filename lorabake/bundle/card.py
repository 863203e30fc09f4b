"""The model card of a bundle: what its page on the hub shows and what the hub finds it by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.manifest import Manifest, Source
from .facts import is_hub_id, usual_base
from .howto import VIDEO, howto, ones
from .licences import Licence, Terms
from .markdown import code, plain

PLAN = "plan.png"
_MARK = "<!-- Written by `lorabake push`, which replaces it only if it was not changed. {} -->\n"
_TAGS = {
    "sd15": "stable-diffusion",
    "sd2": "stable-diffusion",
    "sdxl": "stable-diffusion-xl",
    "qwen": "qwen-image",
    "zimage": "z-image",
}
"""Tags of families that have another name on the hub."""


@dataclass(frozen=True)
class Card:
    """What the card says that the bundle does not.

    Attributes:
        repo: `user/repo`.
        base: Base model on the hub; None if it is not known.
        licence: Of the bundle.
        given: Whether the user named it.
        prompt: The instance prompt; None without trigger words.
        pictures: Path in the repository and prompt of each picture.
        share: Of the plan's cells that are content, style, both; None if there is no picture of it.
        remarks: What the user should know about the licences, a sentence each.
    """

    repo: str
    base: str | None
    licence: Licence
    given: bool
    prompt: str | None
    pictures: Sequence[tuple[str, str]]
    share: Mapping[str, float] | None
    remarks: Sequence[str]


def text(manifest: Manifest, card: Card) -> str:
    """The card: YAML for the hub, Markdown for people, and a mark by which we know it again."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(**_metadata(manifest, card)).to_yaml(line_break="\n")
    body = "\n\n".join(_sections(manifest, card))
    # What no UTF-8 can hold, out of a stranger's manifest.
    whole = f"---\n{data}\n---\n\n{body}\n\n".encode("utf-8", "replace").decode()
    return whole + _MARK.format(_hash(whole))


def is_ours(found: str) -> bool:
    """Whether a card is one of `text`, and nobody has changed it since."""
    whole, mark, rest = found.rpartition(_MARK.partition("{}")[0])
    return mark + rest == _MARK.format(_hash(whole))


def _hash(whole: str) -> str:
    return hashlib.sha256(whole.encode()).hexdigest()


def _metadata(manifest: Manifest, card: Card) -> dict[str, Any]:
    task = "text-to-video" if manifest.family.startswith(VIDEO) else "text-to-image"
    tags = [task, "lora", "diffusers", "template:sd-lora", "lorabake"]
    if usual_base(manifest.family) is not None:
        tags.append(_TAGS.get(manifest.family, manifest.family))
    licence = card.licence
    return {
        "base_model": card.base,
        "base_model_relation": card.base and "adapter",
        "library_name": "diffusers",
        "pipeline_tag": task,
        "tags": tags,
        "license": licence.name if licence.listed else "other",
        "license_name": None if licence.listed else licence.name,
        "license_link": licence.link or None,
        "instance_prompt": card.prompt,
        "widget": [
            {"text": prompt or "-", "output": {"url": path}} for path, prompt in card.pictures
        ] or None,
    }  # fmt: skip


def _sections(manifest: Manifest, card: Card) -> list[str]:
    names = " + ".join(plain(source.name) for source in manifest.sources)
    found = [
        f"# {names}",
        f"A content LoRA and a style LoRA in one file, baked by lorabake ({plain(manifest.method)})"
        + ("." if ones(manifest) or manifest.live else ", together with the plan that says which "
           "of them acts in which layer at which step."),
        *(["<Gallery />"] if card.pictures else []),
        *([f"Prompt: {code(card.prompt)}"] if card.prompt else []),
        *howto(manifest, card.repo, card.base, card.prompt),
    ]  # fmt: skip
    if card.share is not None:
        found += ["## Plan", *_plan(manifest, card.share)]
    found += ["## Sources", *(_source(manifest, i) for i in range(len(manifest.sources)))]
    found += ["## Licence", " ".join((_licence(card), *map(_sentence, card.remarks)))]
    return found


def _plan(manifest: Manifest, share: Mapping[str, float]) -> list[str]:
    if manifest.columns:
        return [f"![The trained coefficients of each layer]({PLAN})"]
    parts = ", ".join(f"{value:.0%} {name}" for name, value in share.items() if value)
    return [
        f"![What each layer applies at each step]({PLAN})",
        f"Of all layers and steps: {parts}.",
    ]


def _source(manifest: Manifest, index: int) -> str:
    source: Source = manifest.sources[index]
    ranks = [layer.ranks[index] for layer in manifest.layers if layer.ranks[index]]
    low, high = min(ranks, default=0), max(ranks, default=0)
    name = f"**{plain(source.name)}**"
    if is_hub_id(source.name):
        name = f"[{name}](https://huggingface.co/{source.name})"
    facts = {
        "trigger words": ", ".join(map(code, source.trigger_words)) or "none stated",
        "base model": plain(source.base_model or "none stated"),
        "licence": plain(source.license or "none stated"),
        "strength": f"{source.strength:g}",
        "rank": f"{low}" if low == high else f"{low} to {high}",
        "layers": str(len(ranks)),
        "SHA-256 of the file": code(source.sha256),
    }
    lines = [f"{plain(source.role).capitalize()}: {name}", ""]
    return "\n".join(lines + [f"* {key}: {value}" for key, value in facts.items()])


def _licence(card: Card) -> str:
    name = plain(card.licence.name)
    shown = f"[{name}]({card.licence.link})" if card.licence.link else name
    why = "the stricter of those of its two sources"
    if card.given:
        why = "as its publisher says"
    elif card.licence.terms == Terms.UNSTATED:
        why = "for want of a licence that both sources state"
    elif card.licence.terms == Terms.UNKNOWN:
        why = "taken for the stricter of those of its two sources"
    return f"This file: {shown}, {why}. The base model has a licence of its own."


def _sentence(remark: str) -> str:
    return plain(f"{remark[0].upper()}{remark[1:]}.")
