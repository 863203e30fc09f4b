"""What a replay did, as plain data."""

from __future__ import annotations

from collections import Counter
from typing import TypedDict


class Applied(TypedDict):
    """One layer.

    `why` says why it is not fused, and is empty if it is. `gates` has the (content, style) factors
    for each of the report's progresses; None where this layer's denoiser was not called.
    """

    component: str
    module: str
    mode: str
    why: str
    gates: list[list[float] | None]


class Memory(TypedDict):
    """Bytes held at this moment: of the LoRAs in the form that replay needs, of base weights."""

    loras: int
    kept: int


class Report(TypedDict):
    """What was applied where, as JSON; `progress` is ascending."""

    bundle: str
    method: str
    pipeline: str
    progress: list[float]
    memory: Memory
    layers: list[Applied]


def summary(modes: list[str], reasons: list[str]) -> str:
    """In words: how many layers run in which mode, and why."""
    counts = Counter(zip(modes, reasons, strict=True))
    return ", ".join(
        f"{count} layers {mode}" + (f" ({why})" if why else "")
        for (mode, why), count in counts.items()
    )
