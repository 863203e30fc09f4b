"""A tiny model with two random LoRAs in it, and the naive dense way to compute with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorabake.lora.pairs import Pair
from lorabake.lora.types import LayerName, LowRank
from lorabake.pipelines.conditions import Condition, denoiser, record
from lorabake.pipelines.noising import Noised, noising
from lorabake.training.branches import Branches
from lorabake.training.coefficients import Coefficients
from lorabake.training.problem import Problem

from .. import bases

PIXELS = 16
PROMPTS = ("a sbu dog", "a cat in szn style")
Deltas = Mapping[str, tuple[Tensor | None, Tensor | None]]


@dataclass
class Stage:
    """A problem, what it was made of, and its coefficients."""

    pipe: Any
    model: Any
    plain: Any
    pairs: tuple[Pair, ...]
    branches: Branches
    problem: Problem
    coefficients: Coefficients
    trained: list[Pair]
    conditions: list[Condition]

    def call(self, model: Any, noised: Noised, row: int) -> Tensor:
        """What another model makes of one sample."""
        condition = self.conditions[row // (len(noised.latents) // 2)]
        t = noised.timesteps[row : row + 1]
        time = (t * condition.clock).float() if t.is_floating_point() else t
        arguments = {condition.sample: noised.latents[row : row + 1], **condition.arguments}
        with torch.no_grad():
            return model(**arguments, timestep=time, return_dict=False)[0]


def build(
    family: str,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float64,
    lengths: tuple[int, int] | None = None,
) -> Stage:
    """Two LoRAs in every fourth linear layer and some convolutions; each lacks one layer.

    With `lengths`, the prompts are cut to so many tokens.
    """
    pipe = bases.FAMILIES[family]()
    pipe.set_progress_bar_config(disable=True)
    pipe.to(dtype)
    model: Any = denoiser(pipe)
    model.requires_grad_(False).eval()
    plain = copy.deepcopy(model)
    pairs = random_pairs("unet" if hasattr(pipe, "unet") else "transformer", model)
    branches = Branches(pipe, pairs, dtype)
    conditions = [record(pipe, prompt, PIXELS) for prompt in PROMPTS]
    if lengths is not None:
        conditions = [cut(one, length) for one, length in zip(conditions, lengths, strict=True)]
    dice = torch.Generator().manual_seed(5)
    latents = [torch.randn(3, *conditions[0].shape, generator=dice, dtype=dtype) for _ in "cs"]
    problem = Problem(
        model, branches, teachers=conditions, students=conditions,
        references=(latents[0], latents[1]), noising=noising(pipe.scheduler), batch=batch,
    )  # fmt: skip
    trained = [pair for pair in pairs if pair.contested]
    widths = [pair.content.shape[1] for pair in trained if pair.content]
    coefficients = Coefficients(widths, torch.device("cpu"), dtype)
    for pair, columns in zip(trained, coefficients.layers, strict=True):
        branches.branches[str(pair.name)].columns = columns
    return Stage(pipe, model, plain, pairs, branches, problem, coefficients, trained, conditions)


def cut(condition: Condition, tokens: int) -> Condition:
    text = condition.arguments["encoder_hidden_states"][:, :tokens]
    return replace(condition, arguments={**condition.arguments, "encoder_hidden_states": text})


def random_pairs(component: str, model: nn.Module) -> tuple[Pair, ...]:
    """Random factors for some layers, of different ranks and scales."""
    dice = torch.Generator().manual_seed(7)
    kinds = (nn.Linear, nn.Conv2d)
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    together = [(n, m) for n, m in named if n.endswith((".to_q", ".to_k")) and "attn2" not in n]
    chosen = named[1::4] + together[:2] + [(n, m) for n, m in named if n.endswith("conv1")][:2]
    found: list[Pair] = []
    for i, (name, module) in enumerate(dict(chosen).items()):
        out, width, *kernel = module.weight.shape
        sides: list[LowRank] = []
        for rank in (2, 3):
            down = torch.randn(rank, width, *kernel, generator=dice) / (width * 4) ** 0.5
            up = torch.randn(out, rank, *(1 for _ in kernel), generator=dice)
            sides.append(LowRank(down, up, 1 / rank))
        found.append(
            Pair(
                LayerName(component, name),
                None if i == 1 else sides[0],
                None if i == 2 else sides[1],
            )
        )
    return tuple(found)


Weights = Callable[[Pair], Sequence[Tensor | None]]


def dense_model(stage: Stage, weights: Weights) -> Any:
    """A copy of the model with W0 plus what `weights` gives for each layer."""
    model = copy.deepcopy(stage.plain)
    for pair in stage.pairs:
        weight = model.get_submodule(pair.name.module).weight
        for delta in weights(pair):
            if delta is not None:
                weight.data += delta
    return model


def predict(stage: Stage, noised: Noised, row: int, weights: Weights) -> Tensor:
    """One sample through a dense copy of the model."""
    return stage.call(dense_model(stage, weights), noised, row)


def alone(side: int) -> Weights:
    """Content (0) or style (1) by itself."""

    def weights(pair: Pair) -> Sequence[Tensor | None]:
        factors = (pair.content, pair.style)[side]
        return [None if factors is None else dense(factors)]

    return weights


def dense(factors: LowRank, columns: Tensor | None = None) -> Tensor:
    """ΔW in float64, with its columns scaled."""
    product = factors.up.double().flatten(1) @ factors.down.double().flatten(1)
    delta = (factors.scale * product).view(len(factors.up), *factors.down.shape[1:])
    if columns is None:
        return delta
    return delta * columns.detach().view(1, -1, *(1 for _ in delta.shape[2:]))


def merged(stage: Stage) -> Weights:
    """m_c ⊗ ΔW_c + m_s ⊗ ΔW_s with the stage's coefficients, 1 where there are none."""
    found = {str(p.name): m for p, m in zip(stage.trained, stage.coefficients.layers, strict=True)}

    def weights(pair: Pair) -> Sequence[Tensor | None]:
        m = found.get(str(pair.name), (None, None))
        sides = ((pair.content, m[0]), (pair.style, m[1]))
        return [None if factors is None else dense(factors, c) for factors, c in sides]

    return weights
