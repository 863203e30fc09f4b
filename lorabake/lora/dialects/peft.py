"""PEFT keys: `unet.….to_q.lora_A.weight`, also bare, `base_model.model.…` and `.default.`."""

from __future__ import annotations

from collections.abc import Collection

from .. import natives
from ..names import bare, layer_name
from ..suffixes import PEFT, cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, alone


def _sign(keys: Collection[str]) -> str | None:
    parts = {key: part for key in sorted(keys) if (part := _split(key))}
    modules = {key: bare(part.module) for key, part in parts.items() if part.slot != "alpha"}
    # Beside names of a model's own code, those that diffusers shares with it tell nothing.
    beside = any(map(natives.known, modules.values()))
    for key, module in modules.items():
        if not natives.known(module) and not (beside and natives.possible(module)):
            return key
    return None


def _split(key: str) -> Part | None:
    found = cut(key, PEFT)
    if found is None or key.startswith(("diffusion_model.", "text_encoders.")):
        return None
    return Part(*found)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    return None if natives.known(bare(module)) else {layer_name(module): factors}


DIALECT = Dialect("PEFT", "unet.….attn1.to_q.lora_A.weight", _sign, _split, alone(_place))
