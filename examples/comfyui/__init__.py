"""Custom node for ComfyUI that replays the plan of a lorabake bundle."""

from __future__ import annotations

from .node import LoadBundle

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {"LorabakeLoadBundle": LoadBundle}
NODE_DISPLAY_NAME_MAPPINGS = {"LorabakeLoadBundle": "Load lorabake bundle"}
