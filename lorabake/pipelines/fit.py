"""Whether LoRA layers exist in a local base model, found out without loading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..errors import BaseModelError
from ..lora.pairs import Pair
from .load import check_parts, folder, index, loading


def misfits(base: str | Path, pairs: Sequence[Pair]) -> list[str]:
    """Layers that a base model does not have, or has in another shape.

    The model's parts are built from their configurations on the meta device.

    Args:
        base: Local folder in diffusers format; an id on the hub is not looked at.
        pairs: Layers to look for.

    Returns:
        One phrase per layer that does not fit; empty if all do.

    Raises:
        BaseModelError: The folder is not a model that can be read.
    """
    path = folder(base)
    if path is None:
        return []
    parts = index(path)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    found: list[str] = []
    for pair in pairs:
        component, module = pair.name
        if component not in parts:
            found.append(f"{pair.name} (the model has no {component})")
            continue
        if component not in shapes:
            check_parts(path, component)
            shapes[component] = _shapes(path / component, *parts[component])
        wanted = pair.shape
        names = (module, module.removeprefix("text_model."))
        shape = next((shapes[component][n] for n in names if n in shapes[component]), None)
        if shape is None:
            found.append(f"{pair.name} (no such layer)")
        elif _bare(shape) != _bare(wanted):
            found.append(f"{pair.name} ({wanted} against {shape} in the model)")
    return found


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1×1 convolution is as good as a linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _shapes(path: Path, library: str, kind: str) -> dict[str, tuple[int, ...]]:
    """Weight shapes by module path of one component."""
    with loading(path), torch.device("meta"):
        return {
            name.removesuffix(".weight"): tuple(weight.shape)
            for name, weight in _build(path, library, kind).named_parameters()
            if name.endswith(".weight")
        }


def _build(path: Path, library: str, kind: str) -> Any:  # noqa: ANN401 - a model of either library
    if library not in ("diffusers", "transformers"):
        raise BaseModelError(
            f"is made of code of its own ({library}.{kind})",
            where=str(path),
            advice="Leave --base away to skip this check",
        )
    home = getattr(import_module(library), kind)
    if library == "diffusers":
        return home.from_config(home.load_config(path))
    return home(home.config_class.from_pretrained(path))
