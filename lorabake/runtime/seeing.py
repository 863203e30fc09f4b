"""What sees the pictures of a guided replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .score import Encoder


@dataclass(frozen=True)
class Seeing:
    """Image encoders, by the names `clip` and `dino`, and what decodes x̂_0 for them.

    `decoder` is None for the pipeline's own VAE.
    """

    encoders: Mapping[str, Encoder] = field(default_factory=dict[str, Encoder])
    decoder: Any = None

    @property
    def given(self) -> bool:
        """Whether anything sees."""
        return bool(self.encoders) or self.decoder is not None
