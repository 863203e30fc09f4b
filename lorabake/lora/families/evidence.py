"""What a LoRA's names, shapes and metadata tell about its base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..metadata import BASES, stated
from ..types import LayerName, LowRank

_ARCHITECTURES = ("ss_base_model_version", "modelspec.architecture")


@dataclass(frozen=True)
class Evidence:
    """A LoRA as the families look at it.

    Attributes:
        layers: Factors by layer.
        dialect: Name of the file's key style.
        metadata: The file's `__metadata__`.
    """

    layers: Mapping[LayerName, LowRank]
    dialect: str
    metadata: Mapping[str, str]

    @cached_property
    def components(self) -> frozenset[str]:
        """Pipeline components that have layers."""
        return frozenset(name.component for name in self.layers)

    @cached_property
    def stated(self) -> list[str]:
        """What the metadata calls the architecture and the base model; `sd_v1.5` is `sd-v1-5`."""
        found = stated(self.metadata, (*_ARCHITECTURES, *BASES))
        return [re.sub(r"[_.\s]", "-", text.lower()) for text in found]

    def has(self, pattern: str) -> bool:
        """Whether the path of some layer, with its component, has a match of this pattern."""
        return any(re.search(pattern, str(name)) for name in self.layers)

    def widths(self, pattern: str) -> frozenset[int]:
        """Input widths of the layers whose path has a match of this pattern."""
        found = (f for name, f in self.layers.items() if re.search(pattern, str(name)))
        return frozenset(factors.down.shape[1] for factors in found)

    def blocks(self, stack: str) -> int:
        """How many blocks a stack of the denoiser has, as far as its layers show."""
        pattern = re.compile(rf"{stack}\.(\d+)\.")
        found = (pattern.match(name.module) for name in self.layers)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    @cached_property
    def context(self) -> int | None:
        """Width of the text that a UNet attends to; None if no layer shows it."""
        widths = self.widths(r"^unet\..*\.attn2\.to_[kv]$")
        return next(iter(widths)) if len(widths) == 1 else None
