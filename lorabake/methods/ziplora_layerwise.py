"""ZipLoRA's coefficients without back-propagation: least squares, layer by layer; our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import TrainingError
from ..lora.pairs import Pair
from ..training.leastsquares import residual, solve
from ..training.moments import Sigmas, moments
from ..training.quadratic import Quadratic
from ..training.scene import Scene, prepare
from .method import Context, Fused
from .trained import TrainedParams, base_for, enough_memory, fused
from .values import not_negative, positive, store, whole

_ROOM = 4 << 30
"""Bytes that moments may take at once; layers beyond that get a calibration of their own."""


@dataclass(frozen=True)
class Params(TrainedParams):
    """One calibration run per prompt, then one linear system per layer.

    Attributes:
        draws: Samples of the calibration for each LoRA, at timesteps of their own.
        lambda_: Weight of the similarity, free of units (`lambda` in presets and on the command
            line).
        ridge: How strongly columns that get little input are held at 1.
    """

    draws: int = 32
    lambda_: float = 0.01
    ridge: float = 0.01

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        super().__post_init__()
        store(
            self,
            draws=whole("draws", self.draws, 1, 10_000),
            lambda_=not_negative("lambda", self.lambda_),
            ridge=positive("ridge", self.ridge),
        )


class ZipLoraLayerwise:
    """Each layer's output is kept near what each LoRA alone gave, for the inputs it had then."""

    name = "ziplora-layerwise"
    summary = "ZipLoRA's coefficients by least squares per layer, without training"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Calibrate, then solve for the denoiser's layers that both LoRAs have.

        Raises:
            UserError: A prompt, the base model or an image is missing or does not fit.
            TrainingError: A layer has no solution.
            MemoryLackError: The device's memory does not suffice.
        """
        wanted, base = params.wanted(self.name), base_for(self.name, pairs, context)
        with enough_memory(params.savings(context.device)):
            scene = prepare(pairs, base, wanted, context.device, context.tell)
            flat, residuals = _solve(scene, params, context)
        return fused(pairs, scene, flat, residuals, "lower ridge")


def _solve(scene: Scene, params: Params, context: Context) -> tuple[Tensor, dict[str, float]]:
    """All coefficients, and the layers' summed deviation before and after."""
    solved: list[Tensor] = []
    residuals = {"residual_before": 0.0, "residual_after": 0.0}
    total = len(scene.names)
    for part in _parts(scene):
        branches = {scene.names[i]: scene.problem.branches.branches[scene.names[i]] for i in part}
        sigmas = moments(
            scene.problem, branches, draws=params.draws, seed=params.seed,
            progress=context.stage("calibrating"),
        )  # fmt: skip
        for i in part:
            m = _solved(scene, i, sigmas(scene.names[i]), params, residuals)
            solved.append(m.cpu())
            context.tell("solving", i + 1, total)
    return torch.cat(solved, 1), residuals


def _parts(scene: Scene) -> list[list[int]]:
    """Layers in groups whose moments fit into memory together, in order."""
    parts: list[list[int]] = []
    room = 0
    for i, (content, _) in enumerate(scene.layers):
        size = 2 * 4 * prod(content.down.shape[1:]) ** 2
        if not parts or size > room:
            parts.append([])
            room = _ROOM
        parts[-1].append(i)
        room -= size
    return parts


def _solved(
    scene: Scene, i: int, sigmas: Sigmas, params: Params, residuals: dict[str, float]
) -> Tensor:
    """One layer's coefficients, `[2, in]`; adds to the residuals."""
    layer = Quadratic.of(*scene.layers[i], *sigmas)
    try:
        m = solve(layer, lambda_=params.lambda_, ridge=params.ridge)
    except ValueError as error:
        raise TrainingError(
            f"{scene.names[i]}: {error}. Check that the base model paints with these LoRAs, "
            "or use --set precision=float32."
        ) from error
    ones = torch.ones_like(m[0])
    for key, both in (("residual_before", (ones, ones)), ("residual_after", m)):
        residuals[key] += residual(layer, *both)
    return torch.stack(m)


METHOD = ZipLoraLayerwise()
