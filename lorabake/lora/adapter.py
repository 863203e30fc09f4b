"""PEFT's adapter configuration, which holds alpha where the tensors do not.

diffusers writes it into the file's metadata as JSON, with a component before each key; PEFT itself
writes it to `adapter_config.json` beside the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LoraFileError, UnsupportedLoraError
from .metadata import parsed
from .source import ADAPTER, CONFIG
from .types import FLOAT32_MAX, LayerName

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
        try:
            text = beside.read_text(encoding="utf-8", errors="replace")
        except OSError as e:
            raise LoraFileError(
                f"the {CONFIG} beside it, which holds its alpha, cannot be read ({e.strerror})",
                where=where,
            ) from e
    config = parsed(text) if text else {}
    if not isinstance(config, dict):
        raise LoraFileError(
            "its adapter configuration is not a JSON object, so its alpha is unknown", where=where
        )
    for key, value in config.items():
        _refuse_variants(key.rpartition(".")[2], value, where)
    return config


def _refuse_variants(key: str, value: object, where: str) -> None:
    kind, word = None, value if isinstance(value, str) else ""
    if key == "use_dora" and value is True:
        kind = "DoRA"
    if key == "peft_type" and word.upper() not in ("LORA", "PEFTTYPE.LORA"):
        kind = word or "of no known type"
    if key == "init_lora_weights" and word.lower().startswith(_CHANGES_BASE):
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
        LoraFileError: An alpha is not a positive number, or `alpha_pattern` is no object of
            regular expressions.
    """
    prefix = f"{name.component}."
    own = {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}
    own = own or {k: v for k, v in config.items() if "." not in k}
    if "lora_alpha" not in own:
        return None
    try:
        alpha = _alpha(own["lora_alpha"], own.get("alpha_pattern") or {}, name.module)
    except (AttributeError, re.error, RecursionError, OverflowError) as e:
        raise LoraFileError(
            "alpha_pattern of its adapter configuration is not a JSON object of regular "
            f"expressions and alphas ({e})",
            where=where,
            advice="Download or save it again",
        ) from e
    root = math.sqrt(rank) if own.get("use_rslora") else rank
    return usable(alpha, f"lora_alpha of {name}", where) / root


def _alpha(default: object, patterns: Mapping[str, object], module: str) -> object:
    """The alpha of the first pattern that fits the module, as PEFT chooses it."""
    fitting = (a for p, a in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{p})", module))
    return next(fitting, default)


def usable(alpha: object, what: str, where: str) -> float:
    """An alpha as a number.

    Zero is refused because programs disagree about it: trainers take it for "alpha = rank",
    loaders for "off". Below zero nothing was trained.

    Raises:
        LoraFileError: It is not a number above zero, or not finite in float32.
    """
    if isinstance(alpha, int | float) and not isinstance(alpha, bool) and 0 < alpha <= FLOAT32_MAX:
        return float(alpha)
    shown = repr(alpha) if isinstance(alpha, int | float | str | None) else "no number"
    raise LoraFileError(
        f"alpha must be a finite number above 0 that float32 can hold, but {what} is {shown}",
        where=where,
        advice="The strength of a LoRA is given when baking, not by its alpha",
    )
