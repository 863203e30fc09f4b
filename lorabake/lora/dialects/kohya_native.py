"""What kohya's dialects share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from .. import natives
from ..kohya import ENCODERS, encoder_layer, split
from ..natives import Native
from ..types import LayerName, LowRank
from .dialect import Part, Place, first

Placed = Mapping[LayerName, LowRank] | None


def sign(heads: re.Pattern[str]) -> Callable[[Collection[str]], str | None]:
    """A dialect's `sign`: a denoiser's key whose module starts like this."""

    def own(key: str) -> bool:
        part = split(key)
        return part is not None and part[:2] == ("lora", "unet") and bool(heads.match(part.name))

    return first(own)


def split_native(key: str) -> Part | None:
    """A dialect's `split`: part and name, as in `unet double_blocks_0_img_mlp_0`."""
    part = split(key)
    return part and Part(f"{part.part} {part.name}", part.slot)


def with_encoders(denoiser: Callable[[str, str, LowRank], Placed]) -> Place:
    """How to place a module: text encoders' alike in all styles, the rest as `denoiser` has it.

    Args:
        denoiser: Called with a module's part and name, and its factors.
    """

    def place(module: str, factors: LowRank) -> Placed:
        part, _, name = module.partition(" ")
        if part in ENCODERS:
            return {encoder_layer(part, name): factors}
        return denoiser(part, name, factors)

    return place


def placer(*members: Native) -> Place:
    """How to place a module, of denoisers of these models."""
    return with_encoders(
        lambda part, name, factors: (
            natives.place(name, factors, members) if part == "unet" else None
        )
    )
