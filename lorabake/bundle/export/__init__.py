"""Export: one or several plain LoRAs from a bundle."""

from __future__ import annotations

from .export import export
from .report import Exported, LayerError, Part

__all__ = ["Exported", "LayerError", "Part", "export"]
