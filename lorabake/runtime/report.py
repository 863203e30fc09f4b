"""What a replay did, as plain data."""

from __future__ import annotations

from collections import Counter
from typing import TypedDict

from .plan import Half


class Applied(TypedDict):
    """One layer.

    `why` says why it is not fused, and is empty if it is. `gates` has the (content, style) factors
    for each of the report's progresses; None where this layer's denoiser was not called, or where
    it chooses live. `decisions` has for each progress what a layer chose live: a list for each
    call of the denoiser, with 0 (content) or 1 (style) for each sample. None is in the place of
    the list where the samples have no such choice: the layer was not computed, or in parts, or
    from rows that are nobody's, or features of one of them are no numbers. It is empty for layers
    that do not choose live.
    """

    component: str
    module: str
    mode: str
    why: str
    gates: list[list[float] | None]
    decisions: list[list[list[int] | None]]


class Memory(TypedDict):
    """Bytes held at this moment: of the LoRAs in the form that replay needs, of base weights."""

    loras: int
    kept: int


class Refined(TypedDict):
    """One refined step of the latents.

    `score` has R of x̂_0 before it (arXiv 2602.15539, eq. 19) for each sample, `gradient` the L2
    norm of ∇R with respect to latents of variance 1; it is empty for m = 0, which needs none.
    """

    progress: float
    score: list[float]
    gradient: list[float]


class Report(TypedDict):
    """What was applied where, as JSON; `progress` is ascending, `guidance` in order of time.

    `half` is where the LoRAs were to act. With `conditional`, gates and decisions are those of the
    samples in that half, and `note` says why it changed nothing, if it did not.
    """

    bundle: str
    method: str
    half: Half
    note: str
    pipeline: str
    progress: list[float]
    memory: Memory
    guidance: list[Refined]
    layers: list[Applied]


def summary(modes: list[str], reasons: list[str]) -> str:
    """In words: how many layers run in which mode, and why."""
    counts = Counter(zip(modes, reasons, strict=True))
    return ", ".join(
        f"{count} layers {mode}" + (f" ({why})" if why else "")
        for (mode, why), count in counts.items()
    )
