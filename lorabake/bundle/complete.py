"""Empty layers that stock loaders look for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from ..lora.pairs import Pair
from ..lora.types import LayerName, LowRank, network_order

_INPUTS = ("q_proj", "k_proj", "v_proj")
_BLOCK = re.compile(r"(single_)?transformer_blocks\.")
_PROJECTION = re.compile(r"(transformer_blocks\.\d+\.attn)\.(to_[qkv]|add_[qkv]_proj)")
_SIDES = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))

Missing = Mapping[str, tuple[int, int]]
"""Module of a transformer → its output rows and input columns, in widths of the model."""


def complete(pairs: Sequence[Pair], family: str | None = None) -> tuple[Pair, ...]:
    """Add empty layers without which a stock loader refuses a file or drops part of it.

    * Text encoders: with kohya keys diffusers recognises attention by its `out_proj`: without one
      it refuses the file, or, where there are feed-forward layers as well, drops the attention
      layers in silence. One empty output projection mends both.
    * FLUX.1: InvokeAI recognises it by two layers of the first blocks, and takes query, key and
      value of a double block together or not at all.
    * FLUX.2: InvokeAI recognises it by the first single block; without it, it takes a file for one
      of Qwen-Image.

    Args:
        pairs: In network order.
        family: Name of the base models' family; None if only text encoders are to be looked at.

    Returns:
        The same with what was missing, each of rank 1 and all zeros, in network order.
    """
    added = [_empty(first) for first in _lacking(pairs)]
    if family in _MISSING:
        added += _transformer(pairs, _MISSING[family])
    return tuple(sorted([*pairs, *added], key=lambda pair: network_order(pair.name)))


def _lacking(pairs: Iterable[Pair]) -> list[Pair]:
    """The first attention layer of each text encoder that has no output projection."""
    first: dict[str, Pair] = {}
    whole: set[str] = set()
    for pair in pairs:
        component, kind = pair.name.component, pair.name.module.rpartition(".")[2]
        if component.startswith("text_encoder") and kind == "out_proj":
            whole.add(component)
        elif component.startswith("text_encoder") and kind in _INPUTS:
            first.setdefault(component, pair)
    return [pair for component, pair in first.items() if component not in whole]


def _empty(beside: Pair) -> Pair:
    """An output projection; the projections of CLIP's attention are square."""
    component, module = beside.name
    name = LayerName(component, f"{module.rpartition('.')[0]}.out_proj")
    out = beside.shape[0]
    content, style = (lora and _nothing(lora, out, out) for lora in beside.loras)
    return Pair(name, content, style)


def _transformer(pairs: Sequence[Pair], missing: Callable[[set[str]], Missing]) -> list[Pair]:
    """Of one LoRA only, so that no method has a choice to make between two times nothing."""
    blocks = [p for p in pairs if p.name.component == "transformer" and _BLOCK.match(p.name.module)]
    if not blocks:
        return []
    # Each layer of a block begins or ends in the model's width, and none is narrower.
    width = min(min(pair.shape[:2]) for pair in blocks)
    like = next(lora for lora in blocks[0].loras if lora is not None)
    return [
        Pair(LayerName("transformer", module), _nothing(like, rows * width, columns * width), None)
        for module, (rows, columns) in missing({pair.name.module for pair in blocks}).items()
    ]


def _flux(present: set[str]) -> Missing:
    wanted = {
        "transformer_blocks.0.attn.add_q_proj",
        "single_transformer_blocks.0.attn.to_q",
    }
    for match in filter(None, map(_PROJECTION.fullmatch, [*present, *wanted])):
        wanted |= {f"{match[1]}.{name}" for side in _SIDES if match[2] in side for name in side}
    return dict.fromkeys(sorted(wanted - present), (1, 1))


def _flux2(present: set[str]) -> Missing:
    """Query, key and value in one, and the two halves of a feed-forward layer three widths wide."""
    fused = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    return {} if fused in present else {fused: (9, 1)}


_MISSING = {"flux": _flux, "flux2": _flux2}


def _nothing(like: LowRank, rows: int, columns: int) -> LowRank:
    """Zeros of rank 1, in the dtype of other factors."""
    down, up = like.down.new_zeros(1, columns), like.up.new_zeros(rows, 1)
    return replace(like, down=down, up=up, scale=1.0, columns=None)
