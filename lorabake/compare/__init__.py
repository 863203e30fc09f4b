"""Comparing ways to fuse: rendering on the same seeds, scores, statistics, report."""

from __future__ import annotations

from .comparison import Comparison
from .evaluate import Evaluation, evaluate
from .request import Setup
from .robustness import Robustness, robustness
from .run import compare_fusions

__all__ = [
    "Comparison", "Evaluation", "Robustness", "Setup", "compare_fusions", "evaluate", "robustness",
]  # fmt: skip
