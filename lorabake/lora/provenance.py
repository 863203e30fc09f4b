"""What a file's metadata says about where it came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from .types import Provenance

_TRIGGERS = (
    "modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "trigger_word",
    "instance_prompt", "activation text",
)  # fmt: skip
_BASES = ("base_model", "base_model_name_or_path", "ss_base_model", "ss_sd_model_name")
_LICENSES = ("modelspec.license", "license")


def provenance(metadata: Mapping[str, str], name: str, sha256: str) -> Provenance:
    """Read it from the keys that trainers and the model specification use."""
    return Provenance(
        name=name,
        sha256=sha256,
        trigger_words=_trigger_words(metadata),
        base_model=_first(metadata, _BASES),
        license=_first(metadata, _LICENSES),
    )


def _first(metadata: Mapping[str, str], keys: Iterable[str]) -> str | None:
    values = (metadata.get(key, "").strip() for key in keys)
    return next((value for value in values if value and value != "None"), None)


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The stated words; else the most frequent tag of each training folder (kohya)."""
    stated = _first(metadata, _TRIGGERS)
    if stated is not None:
        words = _strings(stated) or re.split(r"[,;\n]", stated)
        return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags = [max(counts, key=counts.get).strip() for counts in folders.values() if counts]
    except (ValueError, AttributeError, TypeError):
        return ()
    return tuple(dict.fromkeys(tags))


def _strings(text: str) -> list[str]:
    """A JSON list of strings, as some trainers write it; empty if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []
