"""What a recording found: how input-dependent live decisions are, and how close a plan comes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .bundle.agreement import Agreement
from .pipelines.runs import Difference


@dataclass(frozen=True)
class Recorded:
    """What `record` did.

    Attributes:
        output: The new bundle's path as given.
        method: What its manifest names as its method.
        params: Its parameters: those of the live selection and of the recording.
        layers: Layers in the bundle.
        live: Layers of these that chose live, and now have a table.
        unseen: Layers of those that no run saw choose, so that they are content throughout.
        runs: Images that were recorded: prompts × seeds.
        style: Share of the table's cells (live layers × bins) that are style.
        followed: Share of all live decisions that the table repeats.
        agreement: How alike the decisions of different inputs are.
        difference: Of the images with the table from those chosen live, same prompt and seed.
        direct: Of the images where both LoRAs act all the time (the direct merge) from the same,
            as a scale for `difference`: equal, the table is no nearer to live than that.
        warnings: What the user should know about the result, a sentence each.
        digest: SHA-256 of the tensor data; that of the source, if its bytes are canonical.
        seconds: Wall-clock time.
    """

    output: str
    method: str
    params: dict[str, Any]
    layers: int
    live: int
    unseen: int
    runs: int
    style: float
    followed: float
    agreement: Agreement
    difference: Difference
    direct: Difference
    warnings: tuple[str, ...]
    digest: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        bins = self.params["bins"]
        return "\n".join(
            (
                f"{self.output}: {self.method}, {self.live} of {self.layers} layers recorded in "
                f"{bins} bins (runs: {self.runs}), {self.style:.0%} style",
                f"agreement: {self._agreement()}",
                f"followed: {self.followed:.1%} of the live decisions",
                f"difference from the live images (0 to 255): {self.difference}, "
                f"direct merge {self.direct}",
                f"{self.seconds:.1f} s",
            )
        )

    def _agreement(self) -> str:
        """The figures there are, as text."""
        of = self.agreement
        figures = {
            "between runs": of.runs,
            "same prompt": of.within,
            "different prompts": of.between,
            "guidance halves": of.halves,
        }
        found = [f"{value:.1%} {name}" for name, value in figures.items() if value is not None]
        return ", ".join(found) or "unknown, there is one run only"
