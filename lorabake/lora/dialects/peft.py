"""PEFT keys: `unet.….to_q.lora_A.weight`, also bare, `base_model.model.…` and `.default.`."""

from __future__ import annotations

from .. import natives
from ..names import bare, layer_name
from ..suffixes import PEFT, cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, first

_WRAPPER = "base_model.model."


def _own(key: str) -> bool:
    found = _split(key)
    if found is None or found.slot == "alpha":
        return False
    module = bare(found.module)
    shared = natives.shared(module) and found.module.removeprefix(_WRAPPER) == module
    return not natives.known(module) and not shared


def _split(key: str) -> Part | None:
    found = cut(key, PEFT)
    if found is None or key.startswith(("diffusion_model.", "text_encoders.")):
        return None
    return Part(*found)


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
    return None if natives.known(bare(module)) else {layer_name(module): factors}


DIALECT = Dialect("PEFT", "unet.….attn1.to_q.lora_A.weight", first(_own), _split, _place)
