"""Calibration against what the layers of dense copies of the model get."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lorabake.training.branches import Branch
from lorabake.training.moments import moments
from lorabake.training.problem import USES

from .stage import alone, build, dense_model

DRAWS = 8


def branches(stage_branches: dict[str, Branch], names: list[str]) -> dict[str, Branch]:
    return {name: stage_branches[name] for name in names}


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_second_moments(family: str) -> None:
    stage = build(family)
    names = [str(pair.name) for pair in stage.trained]
    told: list[tuple[int, int]] = []
    found = moments(
        stage.problem, branches(stage.branches.branches, names), draws=DRAWS, seed=3,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)]
    assert not any(module._forward_pre_hooks for module in stage.model.modules())  # pyright: ignore[reportPrivateUsage]
    for side in (0, 1):
        inputs: dict[str, list[Tensor]] = {name: [] for name in names}
        model = dense_model(stage, alone(side))
        for name in names:
            module = model.get_submodule(name.partition(".")[2])
            module.register_forward_pre_hook(keep(inputs[name]), with_kwargs=True)
        updates = [u for u in range(DRAWS * USES) if u % stage.problem.block < 4]
        for update in updates:
            noised = stage.problem.draw(3, update)
            stage.call(model, noised, side)
        for name in names:
            x = torch.cat(inputs[name])
            wanted = x.T @ x / len(x)
            got = found(name)[side].double()
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))


def keep(found: list[Tensor]) -> object:
    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        if isinstance(module, nn.Conv2d):
            patches = functional.unfold(x, (3, 3), padding=1, stride=module.stride)
            found.append(patches.mT.flatten(0, 1))
        else:
            found.append(x.flatten(0, -2))

    return look
