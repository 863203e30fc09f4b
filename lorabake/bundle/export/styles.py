"""Key styles of plain LoRA files: which modules there are, and which layers each one holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ...errors import OutputError
from ...lora.families import Family, generic
from ...lora.kohya import underscored
from ...lora.natives import MEMBERS, Native
from ...lora.source import ADAPTER
from ...lora.types import LayerName
from ...runtime.manifest import DENOISERS

To = Literal["diffusers", "kohya", "peft"]

Shapes = Mapping[LayerName, tuple[int, ...]]
"""Of the layers' ΔW."""

SUFFIXES = {
    "diffusers": (".lora_A.weight", ".lora_B.weight", ""),
    "kohya": (".lora_down.weight", ".lora_up.weight", ".alpha"),
    "peft": (".lora_A.weight", ".lora_B.weight", ""),
}
"""Endings for down, up and alpha; no alpha where there is none, which means a scale of 1."""

_ENCODERS = {"text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}
_SAME_CODE = {"wan22": "wan"}
"""Families whose modules are called as another's are."""
_WITH_MLP = 4
"""Parts of a module that fuses query, key, value and half of an MLP."""


class Module(NamedTuple):
    """One module of a file.

    Attributes:
        stem: Its key without ending.
        layers: What it holds, fused by output rows in this order; None where the LoRA has nothing.
        rows: Of each of these.
        swapped: Whether the two halves of its rows are in the opposite order.
    """

    stem: str
    layers: tuple[LayerName | None, ...]
    rows: tuple[int, ...]
    swapped: bool = False


class Sheet(NamedTuple):
    """One file to write: its path, and its modules in file order."""

    path: Path
    modules: list[Module]


def sheets(to: To, family: Family, shapes: Shapes, target: Path) -> list[Sheet]:
    """The files that these layers go into, the denoiser's first.

    Raises:
        LoraFileError: The family has no such layer.
        OutputError: The style has no name for a layer.
    """
    found: dict[Path, list[Module]] = {}
    for name in sorted(shapes, key=lambda name: (name.component not in DENOISERS, name)):
        path = _path(to, family, name.component, target)
        found.setdefault(path, [])
        native = _native(family, name, shapes) if to == "kohya" else None
        module = native or Module(_stem(to, family, name), (name,), shapes[name][:1])
        if module not in found[path]:
            found[path].append(module)
    return [Sheet(path, sorted(modules, key=lambda m: m.stem)) for path, modules in found.items()]


def peft_module(family: Family, name: LayerName) -> str:
    """A module's path in its own model, as transformers 5 has it.

    That calls what is inside a CLIP text encoder `text_model.…` only where the class has a
    projection after it; diffusers' files call it so everywhere.
    """
    projected = family.name == "sd3" or name.component == "text_encoder_2"
    return name.module if projected else name.module.removeprefix("text_model.")


def _path(to: To, family: Family, component: str, target: Path) -> Path:
    own = component == family.denoiser
    if to == "peft":
        return (target if own else target / component) / ADAPTER
    # Loaders take one denoiser from a file; of the second (Wan 2.2) they say nothing.
    second = component in DENOISERS and not own
    return target.with_name(f"{target.stem}-{component}{target.suffix}") if second else target


def _stem(to: To, family: Family, name: LayerName) -> str:
    """The stem of a layer that is a module of its own."""
    denoiser = name.component in DENOISERS
    if to == "peft":
        return f"base_model.model.{peft_module(family, name)}"
    if to == "diffusers":
        return f"{family.denoiser if denoiser else name.component}.{name.module}"
    if family.denoiser == "unet":
        return family.keys(name)[0].removesuffix(SUFFIXES["kohya"][0])
    if not denoiser:
        return f"lora_{_ENCODERS[name.component]}_{underscored(name.module)}"
    if family is generic.FAMILY:
        raise _nameless(family, name)
    return f"lora_unet_{underscored(name.module)}"


def _nameless(family: Family, name: LayerName) -> OutputError:
    return OutputError(
        f"the kohya style has no name for the layer {name} of {family.title}",
        advice="Export it with --to diffusers",
    )


def _native(family: Family, name: LayerName, shapes: Shapes) -> Module | None:
    """The module of the model's own code that holds a layer; None if it has the same names."""
    own = _SAME_CODE.get(family.name, family.name)
    native = next((one for one in MEMBERS if one.family == own), None)
    if native is None or name.component not in DENOISERS:
        return None
    home = native.home(name.module)
    if home is None:
        raise _nameless(family, name)
    key, number = home
    layers = [LayerName(name.component, m.format(number)) for m in native.modules[key]]
    rows = _rows(native, key, [shapes.get(layer) for layer in layers], shapes[name])
    return Module(
        f"lora_unet_{underscored(key.format(number))}",
        tuple(layer if layer in shapes else None for layer in layers),
        rows,
        key in native.swapped and sum(rows) == 2 * shapes[name][1],
    )


def _rows(
    native: Native, key: str, found: list[tuple[int, ...] | None], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Output rows of each part, also of those that the LoRA does not have."""
    width = shape[1]
    if len(found) < _WITH_MLP:
        return (shape[0],) * len(found)
    mlp = found[-1]
    return (width, width, width, mlp[0] if mlp else int(native.ratios[key] * width) - 3 * width)
