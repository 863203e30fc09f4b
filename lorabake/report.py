"""What a bake did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .bundle import Checks


@dataclass(frozen=True)
class Report:
    """What `make` did.

    Attributes:
        output: The bundle's path as given.
        method: Fusion method.
        params: Its parameters, resolved.
        family: Base model family.
        base: Base model id, if one was given.
        dtype: In which the factors are stored.
        layers: Layers in the bundle.
        shared: Layers that both LoRAs have.
        notes: Figures of the method, for example gamma.
        warnings: What the user should know about the result, a sentence each.
        checks: What was compared after writing, and the worst error found.
        seconds: Wall-clock time.
    """

    output: str
    method: str
    params: dict[str, Any]
    family: str
    base: str | None
    dtype: str
    layers: int
    shared: int
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
        return f"{self.output}: {figures}\nverified: {self.checks}\n{self.seconds:.1f} s"

    def _figures(self) -> list[str]:
        """The notes as text; what has a value before and after, in one piece."""
        found: list[str] = []
        for name, value in self.notes.items():
            label = name.removesuffix("_before").replace("_", " ")
            if name.endswith("_before"):
                found.append(f"{label} {value:.4g} → {self.notes[f'{name[:-7]}_after']:.4g}")
            elif not name.endswith("_after"):
                digits = ",.0f" if float(value).is_integer() else ".4g"
                found.append(f"{label} {value:{digits}}")
        return found
