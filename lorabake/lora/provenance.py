"""What a file's metadata says about where it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .metadata import BASES, parsed, stated
from .types import Provenance

_TRIGGERS = (
    "modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "trigger_word",
    "instance_prompt", "activation text",
)  # fmt: skip
_LONGEST = 1000  # characters; what is longer is no word of a prompt
_LICENSES = ("modelspec.license", "license")


def provenance(metadata: Mapping[str, str], name: str, sha256: str) -> Provenance:
    """Read it from the keys that trainers and the model specification use."""
    return Provenance(
        name=name,
        sha256=sha256,
        trigger_words=_trigger_words(metadata),
        base_model=_first(stated(metadata, BASES)),
        license=_first(stated(metadata, _LICENSES)),
    )


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The stated words; else the most frequent tag of each training folder (kohya)."""
    phrase = _first(stated(metadata, _TRIGGERS))
    if phrase is not None:
        words = _strings(phrase) or re.split(r"[,;\n]", phrase)
        words = [word.strip() for word in words]
        return tuple(dict.fromkeys(word for word in words if 0 < len(word) <= _LONGEST))
    try:
        folders = parsed(metadata.get("ss_tag_frequency", "{}"))
        tags = [max(counts, key=counts.get).strip() for counts in folders.values() if counts]
    except (AttributeError, TypeError):
        return ()
    return tuple(dict.fromkeys(tags))


def _strings(text: str) -> list[str]:
    """A JSON list of strings, as some trainers write it; empty if it is none."""
    value = parsed(text)
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
