"""What a model card can say of a bundle's base model and prompt."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..errors import LoraFileError
from ..lora import families
from ..lora.source import SUFFIXES
from ..runtime.manifest import Manifest
from .markdown import one_line


def is_hub_id(name: str | None) -> bool:
    """Whether a text is the name of a repository, as far as can be seen without asking."""
    suffix = PurePosixPath(name or "").suffix.lower()
    return (
        suffix not in SUFFIXES
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name or "", re.A) is not None
    )


def base_model(manifest: Manifest) -> tuple[str | None, str]:
    """The base model on the hub, and what to tell the user about it.

    The bundle's own, else what those of its LoRAs that name one agree on, else the family's usual.
    """
    stated = {source.base_model for source in manifest.sources if is_hub_id(source.base_model)}
    if is_hub_id(manifest.base):
        return manifest.base, ""
    if len(stated) == 1:
        return stated.pop(), ""
    if (usual := usual_base(manifest.family)) is None:
        return None, "the card names no base model, because neither the bundle nor its LoRAs do"
    return usual, f"the card names {usual} as base model, the usual one of its family"


def usual_base(family: str) -> str | None:
    """The usual base model of a family on the hub."""
    try:
        return families.get(family).hub_id
    except LoraFileError:  # the family of a newer version
        return None


def instance_prompt(manifest: Manifest) -> tuple[str | None, str]:
    """`<subject trigger> in <style trigger>`, and what to tell the user about it."""
    words = [one_line((source.trigger_words or ("",))[0]) for source in manifest.sources]
    if not all(words):
        lacking = [s.role for s, word in zip(manifest.sources, words, strict=True) if not word]
        return None, (
            f"the card has no instance prompt, because the {' and the '.join(lacking)} LoRA "
            "names no trigger word: give one with --instance-prompt"
        )
    subject, style = words
    return f"{subject} {style}" if style.lower().startswith("in ") else f"{subject} in {style}", ""
