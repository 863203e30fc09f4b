"""PEFT's adapter configuration, which holds alpha where the tensors do not.

diffusers writes it into the file's metadata as JSON, with a component before each key; PEFT itself
writes it to `adapter_config.json` beside the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LoraFileError, UnsupportedLoraError
from .source import ADAPTER, CONFIG
from .types import LayerName

METADATA_KEY = "lora_adapter_metadata"

# These write a changed base model beside the LoRA; on the original base their factors are wrong.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def configuration(path: Path, metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The configuration that belongs to a file, empty if there is none.

    Raises:
        LoraFileError: It is not a JSON object.
        UnsupportedLoraError: It describes something else than a plain LoRA.
    """
    beside = path.parent / CONFIG
    text = metadata.get(METADATA_KEY)
    if text is None and path.name == ADAPTER and beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
    try:
        config = json.loads(text) if text else {}
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, dict):
        raise LoraFileError(
            "its adapter configuration is not a JSON object, so its alpha is unknown", where=where
        )
    for key, value in config.items():
        _refuse_variants(key.rpartition(".")[2], value, where)
    return config


def _refuse_variants(key: str, value: object, where: str) -> None:
    kind = None
    if key == "use_dora" and value is True:
        kind = "DoRA"
    if key == "peft_type" and str(value).upper() not in ("LORA", "PEFTTYPE.LORA"):
        kind = str(value)
    if key == "init_lora_weights" and str(value).lower().startswith(_CHANGES_BASE):
        kind = f"a LoRA with {value} initialisation, which also changes the base model"
    if kind:
        raise UnsupportedLoraError(
            f"its adapter configuration says that it is {kind}",
            where=where,
            advice="Convert it to a plain LoRA of the original base model, or choose another file",
        )


def scale(config: Mapping[str, Any], name: LayerName, rank: int, where: str) -> float | None:
    """Scale of a layer, alpha / rank (rank-stabilised: alpha / √rank); None if it is not told.

    Raises:
        LoraFileError: An alpha is not a positive number.
    """
    prefix = f"{name.component}."
    own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    own = own or {k: v for k, v in config.items() if "." not in k}
    if "lora_alpha" not in own:
        return None
    alpha = own["lora_alpha"]
    for pattern, value in dict(own.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name.module):
            alpha = value
            break
    root = math.sqrt(rank) if own.get("use_rslora") else rank
    return usable(alpha, f"lora_alpha of {name}", where) / root


def usable(alpha: object, what: str, where: str) -> float:
    """An alpha as a number.

    Zero is refused because programs disagree about it: trainers take it for "alpha = rank",
    loaders for "off". Below zero nothing was trained.

    Raises:
        LoraFileError: It is not a finite number above zero.
    """
    number = math.nan
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        number = float(alpha)
    if not math.isfinite(number) or number <= 0:
        raise LoraFileError(
            f"alpha must be a finite number above 0, but {what} is {alpha!r}",
            where=where,
            advice="The strength of a LoRA is given when baking, not by its alpha",
        )
    return number
