"""ZipLoRA's coefficients without back-propagation: least squares, layer by layer; our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.pairs import Pair
from ..training.leastsquares import residual, solve
from ..training.moments import Sigmas, moments
from ..training.scene import Scene, prepare
from .method import Context, Fused
from .trained import TrainedParams, TrainingError, base_for, enough_memory, fused
from .values import not_negative, positive, store, whole


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
            MemoryLackError: The device's memory does not suffice.
        """
        wanted, base = params.wanted(self.name), base_for(self.name, pairs, context)
        with enough_memory(params):
            scene = prepare(pairs, base, wanted, context.device, context.tell)
            branches = {name: scene.problem.branches.branches[name] for name in scene.names}
            sigmas = moments(
                scene.problem, branches, draws=params.draws, seed=params.seed,
                progress=context.stage("calibrating"),
            )  # fmt: skip
            flat, residuals = _solve(scene, sigmas, params, context)
        return fused(pairs, scene, flat, residuals)


def _solve(
    scene: Scene, sigmas: Callable[[str], Sigmas], params: Params, context: Context
) -> tuple[Tensor, dict[str, float]]:
    """All coefficients, and the layers' summed deviation before and after."""
    solved: list[Tensor] = []
    residuals = {"residual_before": 0.0, "residual_after": 0.0}
    layers = zip(scene.names, scene.layers, strict=True)
    for done, (name, (content, style)) in enumerate(layers, 1):
        try:
            m = solve(content, style, *sigmas(name), lambda_=params.lambda_, ridge=params.ridge)
        except ValueError as error:
            raise TrainingError(
                f"{name}: {error}. Check that the base model paints with these LoRAs, "
                "or use --set precision=float32."
            ) from error
        ones = torch.ones_like(m[0])
        for key, both in (("residual_before", (ones, ones)), ("residual_after", m)):
            residuals[key] += residual(content, style, *sigmas(name), *both)
        solved.append(torch.stack(m).cpu())
        context.tell("solving", done, len(scene.names))
    return torch.cat(solved, 1), residuals


METHOD = ZipLoraLayerwise()
