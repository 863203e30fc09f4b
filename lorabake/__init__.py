"""Bake a content LoRA and a style LoRA into one file that carries its own fusion plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bake import make
    from .bundle import load
    from .bundle.export import Exported, export
    from .bundle.push import Pushed, push
    from .compare import Comparison, Evaluation, Setup, compare_fusions, evaluate
    from .pipelines.encoders import encoders
    from .recorded import Recorded
    from .recording import record
    from .report import Report
    from .runtime import Bundle, Replay

__all__ = [
    "Bundle", "Comparison", "Evaluation", "Exported", "Pushed", "Recorded", "Replay", "Report",
    "Setup", "compare_fusions", "encoders", "evaluate", "export", "load", "make", "push", "record",
]  # fmt: skip

_HOMES = {
    "make": "bake", "Report": "report", "load": "bundle", "Bundle": "runtime", "Replay": "runtime",
    "export": "bundle.export", "Exported": "bundle.export",
    "push": "bundle.push", "Pushed": "bundle.push", "encoders": "pipelines.encoders",
    "compare_fusions": "compare", "Comparison": "compare", "Setup": "compare",
    "evaluate": "compare", "Evaluation": "compare",
    "record": "recording", "Recorded": "recorded",
}  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type is whatever the name's home holds
    # Late, so that `lorabake --help` does not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
