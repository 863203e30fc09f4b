"""Tensors by module → factors by layer, with every shape checked and every tensor used."""

from __future__ import annotations

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
    modules: dict[str, Slots] = {}
    for key, part in parts.items():
        slots = modules.setdefault(part.module, {})
        if part.slot in slots:
            raise LoraFileError(
                f"two tensors hold the same factor: {slots[part.slot]} and {key}", where=where
            )
        slots[part.slot] = key
    _refuse_orphans(modules, where)
    layers: dict[LayerName, LowRank] = {}
    homes: dict[LayerName, str] = {}
    unknown: list[str] = []
    for module, slots in modules.items():
        factors, alpha = _factors(slots, tensors, where)
        placed = dialect.place(module, factors)
        if placed is None:
            unknown += slots.values()
            continue
        for name, piece in placed.items():
            if name in homes:
                raise LoraFileError(
                    f"two tensors hold the same factor: {homes[name]} and {slots['down']} "
                    f"(both are layer {name})",
                    where=where,
                )
            homes[name] = slots["down"]
            said = scale(config, name, factors.rank, where)
            if alpha is not None and said is not None and abs(alpha - said) > 1e-6 * said:
                raise LoraFileError(
                    f"alpha / rank of {name} is {alpha:g} by {slots['alpha']}, but {said:g} by its "
                    "adapter configuration",
                    where=where,
                )
            layers[name] = LowRank(piece.down, piece.up, alpha or said or 1.0)
    if unknown:
        raise _unused(unknown, len(parts), dialect, where)
    return layers


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
