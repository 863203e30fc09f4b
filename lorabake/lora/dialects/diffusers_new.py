"""diffusers keys before PEFT: `….to_q.lora.down.weight`, `….fc1.lora_linear_layer.down.weight`."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..names import layer_name
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, alone
from .diffusers_old import OWN

_INFIX = r"(?:\.lora|\.lora_linear_layer)"
_KEY = re.compile(rf"(.+?)(?:{_INFIX}\.(?:(down|up)\.weight)|{_INFIX}?\.(alpha))")
_NEW = re.compile(r"\.(?:lora|lora_linear_layer)\.(?:down|up)\.weight$")


def _sign(keys: Collection[str]) -> str | None:
    # Files of the older style have layers without an attention processor in this one.
    if any(OWN.search(key) for key in keys):
        return None
    return next((key for key in sorted(keys) if _NEW.search(key)), None)


def _split(key: str) -> Part | None:
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return Part(match[1], "alpha" if match[3] else "down" if match[2] == "down" else "up")


def _place(module: str, factors: LowRank) -> dict[LayerName, LowRank]:
    return {layer_name(module.replace(".processor.", ".")): factors}


DIALECT = Dialect(
    "diffusers (new)", "unet.….attn1.to_q.lora.down.weight", _sign, _split, alone(_place)
)
