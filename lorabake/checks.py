"""What a bake was asked for, checked before and between its steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from . import pipelines
from .errors import LoraFileError, PairError, RecipeError, listed
from .lora.pairs import Pair
from .lora.source import locate
from .place import kind
from .runtime.manifest import MAX_LAYERS

ROLES = ("content", "style")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def inputs(
    loras: Sequence[str | Path], model: str | Path | None, preset: str | None
) -> tuple[Path, ...]:
    """The local files and folders that a bake reads, as far as there are any."""
    own = [preset] if preset and preset.endswith(".toml") else []
    found = [Path(source) for source in (*loras, *own, *([model] if model else []))]
    for source in loras:
        # A LoRA's file may lie outside its folder, behind a link. What is wrong with a source,
        # reading it tells; a hub id cannot be the output.
        with contextlib.suppress(LoraFileError):
            found += [locate(source).path] if kind(source) else []
    return tuple(found)


def storage(name: str | torch.dtype | None) -> torch.dtype | None:
    """The storage dtype of this name; None stays None."""
    known = {key: value for value in _DTYPES for key in (value, str(value)[6:])}
    if name is not None and name not in known:
        raise RecipeError(
            f"there is no dtype {name} for bundles",
            advice="Choose float16, bfloat16 or float32",
        )
    return None if name is None else known[name]


def size(pairs: Sequence[Pair]) -> None:
    """Refuse more layers than a bundle may have."""
    if len(pairs) > MAX_LAYERS:
        raise PairError(
            f"the two LoRAs change {len(pairs)} layers, a bundle has room for {MAX_LAYERS}",
            advice="Check that they are LoRAs of a diffusion model",
        )


def strengths(given: tuple[float, float]) -> None:
    """Refuse strengths that are not positive numbers."""
    for role, strength in zip(ROLES, given, strict=True):
        if not (math.isfinite(strength) and strength > 0):
            raise RecipeError(
                f"must be a number above 0, not {strength}", where=f"{role} strength",
                advice="1 is the LoRA as it was trained",
            )  # fmt: skip


def base(model: str | Path, pairs: Sequence[Pair]) -> None:
    """Refuse a local base model that lacks some of the layers."""
    wrong = pipelines.misfits(model, pairs)
    if wrong:
        raise PairError(
            f"{len(wrong)} of {len(pairs)} layers do not fit the base model: {listed(wrong, 3)}",
            where=str(model),
            advice="Name the base model that the LoRAs were trained on",
        )
