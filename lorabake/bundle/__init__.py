"""The artefact: writing, checking, describing and finding bundles."""

from __future__ import annotations

from .columns import with_columns
from .compare import Checks, compare
from .complete import complete
from .describe import describe
from .find import load
from .fold import widest
from .modelspec import modelspec
from .stack import strengthen, uniform_ranks
from .verify import verify
from .write import write

__all__ = [
    "Checks",
    "compare",
    "complete",
    "describe",
    "load",
    "modelspec",
    "strengthen",
    "uniform_ranks",
    "verify",
    "widest",
    "with_columns",
    "write",
]
