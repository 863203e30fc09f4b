"""Tensors by module → factors by layer, with every shape checked and every tensor used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..errors import LoraFileError, listed
from . import kinds
from .adapter import scale, usable
from .dialects import Dialect, Part
from .dialects.dialect import Place
from .kinds.convert import Converter, Module
from .suffixes import Slot
from .types import LayerName, LowRank

_AGAIN = "Save it again from the program that made it"

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
    converter: Converter | None = None,
    accept: Callable[[Mapping[LayerName, LowRank]], object] | None = None,
) -> dict[LayerName, LowRank]:
    """Put factors together and give them their layers' names.

    Args:
        dialect: The file's key style.
        parts: What each tensor is.
        tensors: By key.
        config: The adapter configuration, which may hold alpha.
        where: The file, for messages.
        converter: Turns what is no plain LoRA into one; only exactly if not given.
        accept: Called with the layers' outlines before anything is converted; may raise.

    Raises:
        LoraFileError: Factors are missing, double or contradict each other, alpha is no scalar
            above zero, or a module is unknown to the dialect.
        UnsupportedLoraError: A layer has no small exact factors.
    """
    converter = converter or Converter(where)
    modules = _modules(parts, where)
    _refuse_orphans(modules, dialect, where)
    checked = {name: _module(slots, tensors, dialect, where) for name, slots in modules.items()}
    stated = {n: _stated(one, modules[n], tensors, dialect, where) for n, one in checked.items()}
    place = dialect.placing(modules)
    outlines = _outlines(checked, modules, place, dialect, where)
    # Converting may take far more memory than the file, so all else is checked before it.
    if accept and not all(one.kind.plain for one in checked.values()):
        accept(outlines)
    converter.check(list(checked.values()))
    layers: dict[LayerName, LowRank] = {}
    for name, one in checked.items():
        factors, conversion = converter.factors(one)
        placed = place(name, factors) or {}
        for layer, piece in placed.items():
            configured = scale(config, layer, factors.rank, where) if one.kind.plain else None
            agreed = _agreed(stated[name], configured, modules[name], where)
            layers[layer] = LowRank(piece.down, piece.up, agreed)
        if conversion:
            converter.keep(conversion, list(placed), stated[name] or 1.0)
    return layers


def _outlines(
    checked: Mapping[str, Module],
    modules: Mapping[str, Slots],
    place: Place,
    dialect: Dialect,
    where: str,
) -> dict[LayerName, LowRank]:
    """Layers without numbers; refuses modules that the dialect does not know, and two for one."""
    outlines: dict[LayerName, LowRank] = {}
    homes: dict[LayerName, str] = {}
    unknown: list[str] = []
    for name, one in checked.items():
        placed = place(name, one.outline)
        if placed is None:
            unknown += modules[name].values()
        for layer in placed or ():
            if layer in homes:
                raise _double(homes[layer], one.key, where)
            homes[layer] = one.key
        outlines |= placed or {}
    if unknown:
        raise _unused(unknown, sum(map(len, modules.values())), dialect, where)
    return outlines


def _modules(parts: Mapping[str, Part], where: str) -> dict[str, Slots]:
    modules: dict[str, Slots] = {}
    for key, part in parts.items():
        slots = modules.setdefault(part.module, {})
        if part.slot in slots:
            raise _double(slots[part.slot], key, where)
        slots[part.slot] = key
    return modules


def _double(first: str, second: str, where: str) -> LoraFileError:
    return LoraFileError(
        f"two tensors hold the same factor: {first} and {second}", where=where, advice=_AGAIN
    )


def _agreed(stated: float | None, configured: float | None, slots: Slots, where: str) -> float:
    """Scale by the file's alpha tensor and by its configuration; 1 if neither tells."""
    if stated is None or configured is None:
        return stated or configured or 1.0
    if not math.isclose(stated, configured, rel_tol=1e-6):
        raise LoraFileError(
            f"alpha / rank is {stated:g} by {slots['alpha']}, but {configured:g} by the adapter "
            "configuration",
            where=where,
            advice="Take the file and the configuration from one training run",
        )
    return stated


def _refuse_orphans(modules: Mapping[str, Slots], dialect: Dialect, where: str) -> None:
    broken = [slots for slots in modules.values() if kinds.choose(slots.keys()) is None]
    if not broken:
        return
    taken = f"it was taken for a LoRA in the style of {dialect.name}"
    kind = kinds.nearest_kind(broken[0].keys())
    if kind is None:
        names = [key for slot, key in broken[0].items() if slot != "alpha"]
        raise LoraFileError(
            f"one layer has tensors of several kinds of adapters: {listed(names, 8)} ({taken})",
            where=where,
            advice=_AGAIN,
        )
    orphans = [key for slots in broken for key in slots.values()]
    raise LoraFileError(
        f"{len(orphans)} tensors lack the other factors of their layer ({kind.needs}): "
        f"{listed(orphans, 3)} ({taken})",
        where=where,
        advice="The file is incomplete; save or download it again",
    )


def _module(slots: Slots, tensors: Mapping[str, Tensor], dialect: Dialect, where: str) -> Module:
    """One module with its kind, all shapes checked.

    Raises:
        LoraFileError: They contradict each other, or a tensor is empty.
    """
    kind = kinds.choose(slots.keys()) or kinds.PLAIN
    own: dict[Slot, Tensor] = {s: tensors[key] for s, key in slots.items() if s != "alpha"}
    size = None if any(t.numel() == 0 for t in own.values()) else kind.size(own)
    if size is None:
        shapes = [f"{slots[slot]} {list(tensor.shape)}" for slot, tensor in own.items()]
        raise LoraFileError(
            f"the factors' shapes contradict each other: {', '.join(shapes)} (taken for {kind.name}"
            f" in the style of {dialect.name})",
            where=where,
            advice=f"They must be {kind.shapes}",
        )
    return Module(slots[next(iter(own))], kind, own, size)


def _stated(
    module: Module, slots: Slots, tensors: Mapping[str, Tensor], dialect: Dialect, where: str
) -> float | None:
    """Alpha / rank, if the file has an alpha for this module and it has an effect."""
    if "alpha" not in slots:
        return None
    alpha = tensors[slots["alpha"]]
    if alpha.numel() != 1:
        raise LoraFileError(
            f"alpha must be one number, but {slots['alpha']} has shape {list(alpha.shape)} "
            f"(taken for {module.kind.name} in the style of {dialect.name})",
            where=where,
            advice=_AGAIN,
        )
    if module.size.divisor is None:
        return None
    return usable(alpha.item(), slots["alpha"], where) / module.size.divisor
