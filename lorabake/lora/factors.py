"""Tensors by module → factors by layer, with every shape checked and every tensor used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import LoraFileError, listed
from .adapter import scale, usable
from .dialects import Dialect, Part
from .kohya import Slot
from .types import LayerName, LowRank

Slots = dict[Slot, str]
"""The key of each of a module's tensors."""


def split(dialect: Dialect, keys: Mapping[str, Tensor], where: str) -> dict[str, Part]:
    """What each tensor is.

    Raises:
        LoraFileError: The dialect does not know some keys.
    """
    parts = {key: dialect.split(key) for key in keys}
    unknown = [key for key, part in parts.items() if part is None]
    if unknown:
        raise _unused(unknown, len(parts), dialect, where)
    return {key: part for key, part in parts.items() if part is not None}


def _unused(keys: list[str], total: int, dialect: Dialect, where: str) -> LoraFileError:
    return LoraFileError(
        f"{len(keys)} of its {total} tensors have no place in a LoRA in the style of "
        f"{dialect.name}: {listed(keys, 3)}",
        where=where,
        advice=f"Tensors are expected to be named like {dialect.example}",
    )


def assemble(
    dialect: Dialect,
    parts: Mapping[str, Part],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    where: str,
) -> dict[LayerName, LowRank]:
    """Put factors together and give them their layers' names.

    Raises:
        LoraFileError: Factors are missing, double or contradict each other, alpha is no scalar
            above zero, or a module is unknown to the dialect.
    """
    modules = _modules(parts, where)
    _refuse_orphans(modules, where)
    layers: dict[LayerName, LowRank] = {}
    homes: dict[LayerName, str] = {}
    unknown: list[str] = []
    for module, slots in modules.items():
        factors, stated = _factors(slots, tensors, where)
        placed = dialect.place(module, factors)
        if placed is None:
            unknown += slots.values()
            continue
        for name, piece in placed.items():
            if name in homes:
                raise _double(homes[name], slots["down"], where)
            homes[name] = slots["down"]
            configured = scale(config, name, factors.rank, where)
            agreed = _agreed(stated, configured, slots, where)
            layers[name] = LowRank(piece.down, piece.up, agreed)
    if unknown:
        raise _unused(unknown, len(parts), dialect, where)
    return layers


def _modules(parts: Mapping[str, Part], where: str) -> dict[str, Slots]:
    modules: dict[str, Slots] = {}
    for key, part in parts.items():
        slots = modules.setdefault(part.module, {})
        if part.slot in slots:
            raise _double(slots[part.slot], key, where)
        slots[part.slot] = key
    return modules


def _double(first: str, second: str, where: str) -> LoraFileError:
    return LoraFileError(f"two tensors hold the same factor: {first} and {second}", where=where)


def _agreed(stated: float | None, configured: float | None, slots: Slots, where: str) -> float:
    """Scale by the file's alpha tensor and by its configuration; 1 if neither tells."""
    if stated is None or configured is None:
        return stated or configured or 1.0
    if not math.isclose(stated, configured, rel_tol=1e-6):
        raise LoraFileError(
            f"alpha / rank is {stated:g} by {slots['alpha']}, but {configured:g} by the adapter "
            "configuration",
            where=where,
        )
    return stated


def _refuse_orphans(modules: Mapping[str, Slots], where: str) -> None:
    orphans = [
        key
        for slots in modules.values()
        if not {"down", "up"} <= slots.keys()
        for key in slots.values()
    ]
    if orphans:
        raise LoraFileError(
            f"{len(orphans)} tensors lack the other factor of their layer (a down factor needs an "
            f"up factor, and an alpha needs both): {listed(orphans, 3)}",
            where=where,
            advice="The file is incomplete; save or download it again",
        )


def _factors(
    slots: Slots, tensors: Mapping[str, Tensor], where: str
) -> tuple[LowRank, float | None]:
    """The factors of one module, and alpha / rank if the file has an alpha for it."""
    down, up = tensors[slots["down"]], tensors[slots["up"]]
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    _require(_fit(down, up), slots, tensors, where)
    if "alpha" not in slots:
        return LowRank(down, up), None
    alpha = tensors[slots["alpha"]]
    if alpha.numel() != 1:
        raise LoraFileError(
            f"alpha must be one number, but {slots['alpha']} has shape {list(alpha.shape)}",
            where=where,
        )
    return LowRank(down, up), usable(alpha.item(), slots["alpha"], where) / down.shape[0]


def _fit(down: Tensor, up: Tensor) -> bool:
    linear = down.ndim == up.ndim == 2
    convolution = down.ndim == up.ndim == 4 and up.shape[2:] == (1, 1)
    return (
        (linear or convolution)
        and down.shape[0] == up.shape[1]
        and 0 not in (*down.shape, *up.shape)
    )


def _require(fits: bool, slots: Slots, tensors: Mapping[str, Tensor], where: str) -> None:
    if not fits:
        shapes = [f"{key} {list(tensors[key].shape)}" for key in (slots["down"], slots["up"])]
        raise LoraFileError(
            f"the factors' shapes contradict each other: {', '.join(shapes)}",
            where=where,
            advice="They must be [rank, in] and [out, rank], or [rank, in, height, width] and "
            "[out, rank, 1, 1], with a rank of at least 1",
        )
