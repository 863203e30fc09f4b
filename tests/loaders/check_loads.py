"""Loads bundles with stock diffusers and compares ΔW: `python -m tests.loaders.check_loads DIR`.

Runs where neither lorabake nor pytest is installed, with every release of diffusers to be checked.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor

from . import pipes

CLOSE = 1e-6


class _Messages(logging.Handler):
    """What a library logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _logged() -> Generator[list[str]]:
    handler = _Messages()
    diffusers_logging.add_handler(handler)
    try:
        yield handler.texts
    finally:
        diffusers_logging.remove_handler(handler)


def load(pipe: Any, bundle: Path) -> list[str]:
    """Load a bundle as a user without lorabake does.

    Returns:
        What diffusers complained about.
    """
    with _logged() as texts:
        pipe.load_lora_weights(str(bundle.parent), weight_name=bundle.name)
        if getattr(pipe, "transformer_2", None) is not None:
            pipe.transformer_2.load_lora_adapter(
                str(bundle.parent), weight_name=bundle.name, prefix="transformer_2"
            )
    return texts


def update(module: Any) -> Tensor | None:
    """The ΔW that PEFT adds to a layer, from its own factors and scaling."""
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.scaling
    up, down = (f[name].weight.detach().double().flatten(1) for f in (module.lora_B, module.lora_A))
    return (module.scaling[name] * up @ down).reshape(module.base_layer.weight.shape)


def faults(pipe: Any, wanted: dict[str, Tensor]) -> list[str]:
    """Layers whose update is missing, wrong, or not wanted; an empty one is as good as none."""
    found = {name: update(module) for name, module in pipes.layers(pipe).items()}
    lost = [f"{name}: not there" for name in wanted if found.get(name) is None]
    for name, delta in found.items():
        if delta is None:
            continue
        expected = wanted.get(name, torch.zeros_like(delta))
        right = (delta - expected).norm() <= CLOSE * expected.norm()
        if not right:  # of NaN as well
            lost.append(f"{name}: wrong")
    return lost


def check(folder: Path, name: str) -> tuple[int, list[str]]:
    """Load one family's bundle.

    Returns:
        Number of layers, and what is wrong with them.
    """
    pipe, wanted = pipes.CASES[name].build(), load_file(folder / f"{name}.oracle")
    try:
        complaints = load(pipe, folder / f"{name}.safetensors")
    except (ValueError, RuntimeError, KeyError) as error:
        return len(wanted), [f"{type(error).__name__}: {error}"]
    return len(wanted), [*complaints, *faults(pipe, wanted)]


def main(folder: Path) -> int:
    """Check all, print a table; 1 if a bundle does not load as it should."""
    release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    status = 0
    for name, case in pipes.CASES.items():
        if release < case.since:
            verdict = f"      not before {case.since[0]}.{case.since[1]}"
        else:
            count, wrong = check(folder, name)
            status |= bool(wrong)
            found = f"{len(wrong)} wrong: {'; '.join(wrong)[:300]}" if wrong else "right"
            verdict = f"{count:5} layers  {found}"
        sys.stdout.write(f"diffusers {diffusers.__version__:9}{name:12}{verdict}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
