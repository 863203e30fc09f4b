"""Two files for two denoisers: Wan 2.2's LoRAs come as one for high and one for low noise.

Their keys are the same; only their names tell them apart. diffusers has the denoiser for high noise
as `transformer`, the one for low noise as `transformer_2`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from ..errors import LoraFileError
from ..place import expanded, kind
from . import families
from .source import ADAPTER, WEIGHTS
from .types import LayerName, Lora

_HIGH = re.compile(r"high", re.IGNORECASE)
_FIRST, _SECOND = "transformer", "transformer_2"


def stages(source: str | Path) -> tuple[Path, Path] | None:
    """The LoRAs for high and for low noise in a local folder.

    They are its only two `.safetensors` files, and their names differ in `high` and `low` alone.
    None if the source is anything else.
    """
    folder = expanded(source)
    if kind(folder) != "folder":
        return None
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    except OSError:
        return None  # Told by whoever reads it as a single LoRA.
    files = [path for path in found if not path.name.startswith(".")]
    if len(files) != 2 or {path.name for path in files} & {WEIGHTS, ADAPTER}:
        return None
    for high, low in permutations(files):
        if _HIGH.sub("low", high.name).lower() == low.name.lower() != high.name.lower():
            return high, low
    return None


def join(high: Lora, low: Lora, source: str | Path, family: str | None) -> Lora:
    """One LoRA for both denoisers.

    Args:
        high: For high noise, all of it for `transformer`.
        low: For low noise, likewise; its layers become those of `transformer_2`.
        source: The folder, which gives the name.
        family: Base model family; None to tell it from the layers.

    Raises:
        LoraFileError: One of them is for something else than one transformer.
    """
    for lora in (high, low):
        others = {name.component for name in lora.layers} - {_FIRST}
        if others:
            raise LoraFileError(
                f"{lora.provenance.name} has layers of {', '.join(sorted(others))}, but in a "
                "folder with a LoRA for high and one for low noise each is for one transformer",
                where=str(source),
                advice="Name the file that you mean",
            )
    layers = {**high.layers, **{_second(name): f for name, f in low.layers.items()}}
    metadata = {**low.metadata, **high.metadata}
    home, rivals = high.family, frozenset[str]()
    if family is None:
        found, rivals = families.recognise(families.Evidence(layers, "", metadata), str(source))
        home = found.name
    both = "".join(lora.provenance.sha256 for lora in (high, low))
    words = dict.fromkeys([*high.provenance.trigger_words, *low.provenance.trigger_words])
    moved = [replace(x, layers=tuple(map(_second, x.layers))) for x in low.conversions]
    return Lora(
        layers=layers,
        family=home,
        provenance=replace(
            high.provenance,
            name=expanded(source).resolve().name,
            sha256=hashlib.sha256(both.encode()).hexdigest(),
            trigger_words=tuple(words),
        ),
        metadata=metadata,
        rivals=rivals,
        conversions=(*high.conversions, *moved),
    )


def _second(name: LayerName) -> LayerName:
    return LayerName(_SECOND, name.module)
