"""What a comparison measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One way; all times are medians in seconds.

    Attributes:
        way: Its name in JSON.
        label: Its name in the table.
        step: Per step, from the first call of the denoiser to its last; None if it cannot run.
        image: Per image, by its number of steps.
        ratio: To the floor's time per image; empty if there is none.
        memory: Peak bytes, on a card of all, on a CPU of the growth; None if nobody tells.
        attach: To apply it to the pipeline.
        detach: To take it away again.
        extrapolated: Whether images are computed from the time of a few steps.
        reason: Why it cannot run; empty if it can.
    """

    way: str
    label: str
    step: float | None
    image: Mapping[int, float]
    ratio: Mapping[int, float]
    memory: int | None
    attach: float | None
    detach: float | None
    extrapolated: bool
    reason: str


@dataclass(frozen=True)
class Result:
    """All ways side by side.

    Attributes:
        machine: Device, threads, versions, dtype, size of an image and such.
        steps: Numbers of steps that images had.
        repeats: Rounds behind each median.
        rows: In the order of the table.
        loras: Bytes of both LoRAs as they are kept while attached.
        kept: Bytes of the weights that fused keeps to put them back.
    """

    machine: Mapping[str, str | int]
    steps: tuple[int, ...]
    repeats: int
    rows: tuple[Row, ...]
    loras: int
    kept: int

    def __getitem__(self, way: str) -> Row:
        return next(row for row in self.rows if row.way == way)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
