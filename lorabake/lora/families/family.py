"""What a family is: base models whose LoRAs can be fused, and how their files name layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from ...errors import LoraFileError
from ..types import LayerName
from .evidence import Evidence


class Fit(IntEnum):
    """How well a LoRA fits a family."""

    NO = 0
    POSSIBLE = 1
    LIKELY = 2
    SURE = 3


@dataclass(frozen=True, eq=False)
class Family:
    """One base model family. Each module in `families/` has one, as `FAMILY`.

    Attributes:
        name: Short name, as in manifests.
        title: Name for people.
        architecture: The `modelspec.architecture` of its LoRAs.
        denoiser: Pipeline component that denoises.
        hub_id: A base model on the hub; None if there is no usual one.
        modules: Per component, the module paths that a LoRA may have there.
        alias: What its base models are called, as `Evidence.stated` has it; None if they have no
            name in common.
        fit: How well a LoRA fits, given that its modules do.
        spell: A layer's key in the style that the loaders of this family share, without the suffix
            for down or up; None where stock loaders cannot find the layer.
    """

    name: str
    title: str
    architecture: str
    denoiser: Literal["unet", "transformer"]
    hub_id: str | None
    modules: Mapping[str, re.Pattern[str]]
    alias: re.Pattern[str] | None
    fit: Callable[[Evidence], Fit]
    spell: Callable[[LayerName], str | None]

    def owns(self, name: LayerName) -> bool:
        """Whether models of this family can have this layer."""
        pattern = self.modules.get(name.component)
        return pattern is not None and pattern.fullmatch(name.module) is not None

    def keys(self, name: LayerName) -> tuple[str, str]:
        """The keys of a layer's down and up factor in a file that every loader accepts.

        Raises:
            LoraFileError: The family has no such layer, or stock loaders cannot find it.
        """
        stem = self.spell(name) if self.owns(name) else None
        if stem is None:
            raise LoraFileError(
                f"{self.title} has no layer {name}, or no loader would find it under any name",
                advice="Choose LoRAs without this layer",
            )
        down, up = _SUFFIXES[self.denoiser]
        return f"{stem}.{down}.weight", f"{stem}.{up}.weight"


_SUFFIXES = {"unet": ("lora_down", "lora_up"), "transformer": ("lora_A", "lora_B")}
