"""What a bake did."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .bundle import Checks
from .lora import Lora
from .runtime.plan import Half


@dataclass(frozen=True)
class Converted:
    """What became of one module of a source that was no plain LoRA.

    Attributes:
        source: `content` or `style`.
        layers: Its layers; several where a model's own code fuses them.
        kind: What it was, for example `LoHa`.
        exact_rank: Rank of the factors that hold it exactly.
        rank: Rank that it got.
        error: Relative Frobenius error of its update; 0 where it is exact.
        norm: Frobenius norm of its update.
    """

    source: str
    layers: tuple[str, ...]
    kind: str
    exact_rank: int
    rank: int
    error: float
    norm: float


def conversions(loras: Mapping[str, Lora]) -> tuple[Converted, ...]:
    """What was converted in the sources, by their roles."""
    return tuple(
        Converted(
            role, tuple(map(str, done.layers)), done.kind, done.exact_rank, done.rank, done.error,
            done.norm,
        )
        for role, lora in loras.items()
        for done in lora.conversions
    )  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What `make` did.

    Attributes:
        output: The bundle's path as given.
        method: Fusion method.
        params: Its parameters, resolved.
        half: In which half of guidance the LoRAs act: `both` or `conditional`.
        family: Base model family.
        base: Base model id, if one was given.
        dtype: In which the factors are stored.
        layers: Layers in the bundle.
        shared: Layers that both LoRAs have.
        rivals: Other families that the layers of both LoRAs fit as well.
        conversions: What became of layers that were no plain LoRA.
        notes: Figures of the method, for example gamma.
        warnings: What the user should know about the result, a sentence each.
        checks: What was compared after writing, and the worst error found.
        seconds: Wall-clock time.
    """

    output: str
    method: str
    params: dict[str, Any]
    half: Half
    family: str
    base: str | None
    dtype: str
    layers: int
    shared: int
    rivals: tuple[str, ...]
    conversions: tuple[Converted, ...]
    notes: dict[str, float]
    warnings: tuple[str, ...]
    checks: Checks
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        layers = f"{self.layers} {self.family} layers ({self.shared} in both LoRAs)"
        figures = ", ".join([self.method, layers, *self._figures()])
        lines = [f"{self.output}: {figures}", *self._doubt(), *self._converted()]
        return "\n".join([*lines, f"verified: {self.checks}", f"{self.seconds:.1f} s"])

    def _doubt(self) -> list[str]:
        if not self.rivals:
            return []
        return [
            f"taken for {self.family}, but the layers fit {' and '.join(self.rivals)} as well: "
            "--family decides"
        ]

    def _converted(self) -> list[str]:
        """One line for each source that was no plain LoRA."""
        roles = dict.fromkeys(done.source for done in self.conversions)
        return [_summary([x for x in self.conversions if x.source == role]) for role in roles]

    def _figures(self) -> list[str]:
        """The notes as text; what has a value before and after, in one piece."""
        found = [f"{self.half} half of guidance only"] if self.half != "both" else []
        for name, value in self.notes.items():
            label = name.removesuffix("_before").replace("_", " ")
            if name.endswith("_before"):
                found.append(f"{label} {value:.4g} → {self.notes[f'{name[:-7]}_after']:.4g}")
            elif not name.endswith("_after"):
                digits = ",.0f" if float(value).is_integer() else ".4g"
                found.append(f"{label} {value:{digits}}")
        return found


def _summary(of: list[Converted]) -> str:
    """How many layers of which kind a source had, and what taking them cost."""
    kinds = Counter(done.kind for done in of for _ in done.layers)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    start = f"{of[0].source}: {counts} layers converted"
    reduced = [done for done in of if done.error]
    if not reduced:
        return f"{start} exactly"
    total = math.hypot(*(done.norm for done in of))
    error = math.hypot(*(done.error * done.norm for done in of)) / total if total else 0.0
    worst = max(reduced, key=lambda done: done.error)
    count = sum(len(done.layers) for done in reduced)
    return (
        f"{start}, {count} of them to a lower rank: an error of {error:.2g} of their norm overall, "
        f"at worst {worst.error:.2g} ({worst.layers[0]}, rank {worst.exact_rank} → {worst.rank})"
    )
