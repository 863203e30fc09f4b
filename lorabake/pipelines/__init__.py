"""The only door to diffusers and transformers; they are imported when something is called."""

from __future__ import annotations

from .fit import misfits
from .generate import generate
from .load import folder, load
from .render import render
from .sheet import grid, sheet

__all__ = ["folder", "generate", "grid", "load", "misfits", "render", "sheet"]
