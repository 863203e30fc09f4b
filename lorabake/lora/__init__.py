"""LoRAs: what they are, how they are read, how two of them are paired."""

from __future__ import annotations

from .pairs import Pair, common_family, pair
from .reading import read, read_both
from .types import LayerName, Lora, LowRank, Provenance, network_order

__all__ = [
    "LayerName", "Lora", "LowRank", "Pair", "Provenance", "common_family", "network_order", "pair",
    "read", "read_both",
]  # fmt: skip
