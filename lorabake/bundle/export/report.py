"""What an export did, and what it lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["plan", "moment", "timeline", "content", "style"]

_WORST = 5


@dataclass(frozen=True)
class LayerError:
    """One layer of an exported LoRA.

    Attributes:
        layer: Its component and module.
        rank: Of its update; in the file it is padded to that of the component.
        plan_error: Root mean square over time of ‖ΔW(p) − ΔW‖, relative to that of ‖ΔW(p)‖, in
            Frobenius norms; 0 where the plan does not change.
        rank_error: ‖error‖ / ‖ΔW‖ of the compression; 0 without.
    """

    layer: str
    rank: int
    plan_error: float
    rank_error: float


@dataclass(frozen=True)
class Part:
    """One plain LoRA.

    Attributes:
        files: Its files.
        start: Progress from which on it stands for the plan.
        end: Progress up to which it does.
        ranks: The rank of each component's layers in the files.
        plan_error: As of a layer, of all layers together.
        rank_error: Likewise.
        layers: One by one.
    """

    files: tuple[str, ...]
    start: float
    end: float
    ranks: dict[str, int]
    plan_error: float
    rank_error: float
    layers: tuple[LayerError, ...]


@dataclass(frozen=True)
class Exported:
    """What `export` did.

    Attributes:
        output: The path as given.
        to: Key style.
        kind: What the LoRAs are: the whole `plan`, one `moment` of it, its parts as a `timeline`,
            or the bundle's `content` or `style` LoRA alone.
        method: Of the bundle.
        family: Of the base model.
        dtype: Of the files' tensors.
        parts: One LoRA, or those of a timeline in order.
        sidecar: File that tells when each part of a timeline is to be used; empty if there is none.
        warnings: What the user should know about the result, a sentence each.
        seconds: Wall-clock time.
    """

    output: str
    to: str
    kind: Kind
    method: str
    family: str
    dtype: str
    parts: tuple[Part, ...]
    sidecar: str
    warnings: tuple[str, ...]
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether every LoRA does just what the bundle does while it stands for it."""
        return all(part.plan_error == part.rank_error == 0 for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"exact": self.exact}

    def __str__(self) -> str:
        layers = max(len(part.layers) for part in self.parts)
        ranks = ", ".join(f"{name} rank {rank}" for name, rank in self.parts[0].ranks.items())
        what = _KINDS[self.kind].format(self.method)
        lines = [f"{self.output}: {what}, for {self.to}, {layers} {self.family} layers, {ranks}"]
        if self.kind == "timeline":
            lines += [_line(part) for part in self.parts]
        if self.exact:
            lines.append("exact: the bundle's own update, but for rounding")
        for what, of in _ERRORS.items():
            lines += self._errors(what, of)
        return "\n".join([*lines, f"{self.seconds:.1f} s"])

    def _errors(self, what: str, of: Callable[[Part | LayerError], float]) -> list[str]:
        """The overall error, or the largest of several, and the layers where it is worst."""
        overall = max(map(of, self.parts))
        worst = sorted({(of(x), x.layer) for part in self.parts for x in part.layers})[-_WORST:]
        if not overall:
            return []
        most = "at most " if len(self.parts) > 1 else ""
        lines = [f"  {error:6.1%}  {layer}" for error, layer in reversed(worst) if error]
        return [f"{what}: {most}{overall:.1%} of the update; worst layers:", *lines]


def _line(part: Part) -> str:
    errors = [f"{of(part):.1%} {what}" for what, of in _ERRORS.items() if of(part)]
    return f"  {part.start:.3f} to {part.end:.3f}  {part.files[0]}  {', '.join(errors) or 'exact'}"


_KINDS = {
    "plan": "the whole plan ({})",
    "moment": "one moment of the plan ({})",
    "timeline": "the plan ({}) in parts",
    "content": "the content LoRA alone",
    "style": "the style LoRA alone",
}
_ERRORS: dict[str, Callable[[Part | LayerError], float]] = {
    "error of being static": lambda x: x.plan_error,
    "error of fewer ranks": lambda x: x.rank_error,
}
