"""The manifest of a bundle: what SPEC.md calls the JSON object under the `lorabake` metadata key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import Rule, Scale

KEY = "lorabake"
FORMAT = (1, 0)


@dataclass(frozen=True)
class Source:
    """One of the stacked LoRAs, in stacking order (content, then style)."""

    role: str
    name: str
    sha256: str
    strength: float
    trigger_words: tuple[str, ...]
    base_model: str | None
    license: str | None


@dataclass(frozen=True)
class Layer:
    """One layer of the file.

    Attributes:
        component: Pipeline component, for example `unet`, `transformer`, `text_encoder`.
        module: Path of the module inside the component, diffusers naming.
        down: Key of the tensor that holds the stacked A.
        up: Key of the tensor that holds the stacked B.
        ranks: Rank of each source, in stacking order; 0 where a source lacks the layer.
        rule: What is applied when.
    """

    component: str
    module: str
    down: str
    up: str
    ranks: tuple[int, ...]
    rule: Rule


@dataclass(frozen=True)
class Manifest:
    """Everything in a bundle that is not a tensor."""

    method: str
    params: dict[str, Any]
    family: str
    base: str | None
    sources: tuple[Source, ...]
    layers: tuple[Layer, ...]
    scale: Scale | None
    digest: str
    format: tuple[int, int] = FORMAT
