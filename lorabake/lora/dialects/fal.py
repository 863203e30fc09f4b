"""PEFT keys with the names of the model's own code: fal's trainers, DiffSynth.

`base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight` (FLUX Kontext, FLUX.2), or bare, as
`blocks.0.self_attn.q.lora_A.default.weight` (Wan).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .. import natives
from ..names import bare
from ..suffixes import PEFT, cut
from ..types import LayerName, LowRank
from .dialect import Dialect, Part, Place, first


def _own(key: str) -> bool:
    found = _split(key)
    return found is not None and found.slot != "alpha" and natives.known(found.module)


def _split(key: str) -> Part | None:
    found = cut(key, PEFT)
    if found is None or key.startswith("diffusion_model."):
        return None
    return Part(bare(found[0]), found[1])


def _beside(modules: Collection[str]) -> Place:
    members = natives.likeliest(modules)

    def place(module: str, factors: LowRank) -> Mapping[LayerName, LowRank] | None:
        found = natives.place(module, factors, members)
        if found is None and natives.possible(module) and not natives.known(module):
            return {LayerName("transformer", module): factors}  # Z-Image's, which are not fused
        return found

    return place


DIALECT = Dialect(
    "fal",
    "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight",
    first(_own),
    _split,
    _beside,
)
