"""What the training scripts share: averages of weights, learning rates, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# The parts of diffusers whose declared types do not fit what they accept and return.
Untyped: TypeAlias = Any


class Average:
    """An exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the model's present weights."""
        self.decay = decay
        self.state: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights, faster at the start."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, weight)


def cosine(step: int, steps: int) -> float:
    """Warm up over 100 steps, then fall to zero along a cosine."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def linear(step: int, steps: int, flat: float) -> float:
    """Warm up over 100 steps, stay, then fall linearly to zero from ``flat`` of the way on."""
    return min(1.0, (step + 1) / 100, (steps - step) / (steps * (1 - flat)))


def checkpoint(
    path: Path, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer, step: int
) -> None:
    """Write by rename, so that an interrupted run leaves the last whole checkpoint."""
    part = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "average": average.state,
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    torch.save(state, part)
    part.replace(path)


def resume(path: Path, model: nn.Module, average: Average, optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    average.state = state["average"]
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
