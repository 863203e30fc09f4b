"""Empty layers that stock loaders look for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..lora.pairs import Pair
from ..lora.types import LayerName, LowRank, network_order

_INPUTS = ("q_proj", "k_proj", "v_proj")


def complete(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Add an empty `out_proj` to text encoders whose attention layers come without one.

    With kohya keys diffusers recognises a text encoder's attention by its `out_proj`: without one
    it refuses the file, or, where there are feed-forward layers as well, drops the attention
    layers in silence. One output projection of rank 1 that is all zeros mends both.

    Args:
        pairs: In network order.

    Returns:
        The same with what was missing, in network order.
    """
    added = [_empty(first) for first in _lacking(pairs)]
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
    component, module = beside.name
    name = LayerName(component, f"{module.rpartition('.')[0]}.out_proj")
    return Pair(name, _nothing(beside.content), _nothing(beside.style))


def _nothing(beside: LowRank | None) -> LowRank | None:
    """Zeros of rank 1; the projections of CLIP's attention are square."""
    if beside is None:
        return None
    out = beside.shape[0]
    down, up = beside.down.new_zeros(1, out), beside.up.new_zeros(out, 1)
    return replace(beside, down=down, up=up, scale=1.0, columns=None)
