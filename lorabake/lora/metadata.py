"""The strings of a file's `__metadata__`, which anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

BASES = ("base_model", "base_model_name_or_path", "ss_base_model", "ss_sd_model_name")
"""Keys under which trainers name the base model."""


def stated(metadata: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    """What it says under these keys, as far as it says anything."""
    values = [metadata.get(key, "").strip() for key in keys]
    return [value for value in values if value not in ("", "None")]


def parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value that a text holds; None if it holds none that Python can take.

    Besides broken JSON these are numbers of thousands of digits, bottomless nesting, and strings
    that are not Unicode text.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value
