"""One attach serves images of any kind in any order, also after one that was broken off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from ..runtime import pipes
from .hand import by_weights
from .stage import CLEAR, Stage, bits, error, render

# diffusers' Euler and Heun hand torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MODES = ("fused", "hooks")
Make = Callable[[], Any]


def shifting() -> Any:
    """FLUX with timesteps that depend on the size of the image, as FLUX.1-dev has them."""
    pipe = pipes.flux()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return pipe


MAKES = pytest.mark.parametrize("make", [pipes.sd, shifting])
IMAGES: list[dict[str, Any]] = [
    {"steps": 4},
    {"steps": 4, "batch": 2},
    {"steps": 4, "height": 12, "width": 16},
    {"steps": 6, "height": 16, "batch": 2, "length": 9},
    {"steps": 2, "guidance": 1.0},
    {"steps": 6, "length": 3, "guidance": 1.0, "batch": 3},
    {"steps": 5, "num_images_per_prompt": 3},
    {"steps": 5, "num_images_per_prompt": 2, "batch": 2, "guidance": 1.0, "width": 12},
]


@pytest.fixture
def stage(make: Make, tmp_path: Path, seed: int) -> Stage:
    return Stage(make(), tmp_path, seed)


@MAKES
@pytest.mark.parametrize("mode", MODES)
def test_images_of_all_kinds(stage: Stage, mode: Any) -> None:
    # FLUX repeats its embeddings for that only where it has made them of a prompt itself.
    images = [x for x in IMAGES if stage.name == "unet" or "num_images_per_prompt" not in x]
    expected = [stage.expected(**image, seed=i) for i, image in enumerate(images)]
    base = [stage.base(**image, seed=i) for i, image in enumerate(images)]
    fresh: list[Tensor] = []
    for i, image in enumerate(images):
        with stage.bundle.attach(stage.pipe, mode):
            fresh.append(stage.base(**image, seed=i))
    with stage.bundle.attach(stage.pipe, mode):
        for i in [*range(len(images)), *reversed(range(len(images)))]:
            found = stage.base(**images[i], seed=i)
            assert found.shape == expected[i].shape
            assert torch.equal(found, fresh[i])
            assert error(found, expected[i]) <= 1e-5
    assert all(error(*pair) > CLEAR / 5 for pair in zip(base, expected, strict=True))


class Broken(Exception):  # noqa: N818 - it is no error of the code under test
    """Somebody has had enough."""


def _by_exception(pipe: Any, steps: int) -> None:
    """In the callback of the second step."""

    def stop(_: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            raise Broken
        return values

    with pytest.raises(Broken):
        render(pipe, steps, callback_on_step_end=stop)


def _by_flag(pipe: Any, steps: int) -> None:
    """As diffusers' documentation has it."""

    def stop(run: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        run._interrupt = i >= 1
        return values

    render(pipe, steps, callback_on_step_end=stop)
    assert pipe.interrupt


def _within_a_call(pipe: Any, steps: int) -> None:
    """In the middle of the network, as when memory runs out."""
    middle = pipe.unet.up_blocks[0] if hasattr(pipe, "unet") else pipe.transformer.norm_out
    calls = iter(range(2))

    def fail(*_: Any) -> None:
        if next(calls, None) is None:
            raise Broken

    with middle.register_forward_pre_hook(fail), pytest.raises(Broken):
        render(pipe, steps)


BREAKS = [_by_exception, _by_flag, _within_a_call]


@MAKES
@pytest.mark.parametrize("stop", BREAKS)
@pytest.mark.parametrize("mode", MODES)
def test_broken_off_and_begun_again(stage: Stage, mode: Any, stop: Any) -> None:
    expected, base, before = stage.expected(5), stage.base(5), bits(stage.root)
    with stage.bundle.attach(stage.pipe, mode):
        for steps in (5, 8):
            stop(stage.pipe, steps)
            assert error(stage.base(5), expected) <= 1e-5
        stop(stage.pipe, 8)
    assert bits(stage.root) == before
    assert torch.equal(stage.base(5), base)
    assert error(base, expected) > CLEAR / 5


@pytest.mark.parametrize("make", [pipes.sd])
@pytest.mark.parametrize("mode", MODES)
def test_what_was_rendered_before_the_break(stage: Stage, mode: Any) -> None:
    seen: list[Tensor] = []

    def stop(run: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        run._interrupt = i >= 2
        return values

    twin = stage.twin()
    with by_weights(twin.unet, stage.specs, range(6)):
        expected = render(twin, 6, callback_on_step_end=stop)
    with stage.bundle.attach(stage.pipe, mode) as replay:
        seen.append(render(stage.pipe, 6, callback_on_step_end=stop))
        assert replay.report()["progress"] == [0, 1 / 6, 2 / 6]
    assert error(seen[0], expected) <= 1e-5
    assert error(render(stage.pipe, 6, callback_on_step_end=stop), expected) > CLEAR / 5


@pytest.mark.parametrize("make", [pipes.sd])
@pytest.mark.parametrize("mode", MODES)
def test_schedulers_and_step_counts_in_turn(stage: Stage, mode: Any) -> None:
    """A plan follows positions, whatever the values at them are."""
    turns: list[tuple[str, int, list[int]]] = [
        ("ddim", 4, [0, 1, 2, 3]),
        ("euler", 6, [0, 1, 2, 3, 4, 5]),
        ("heun", 3, [0, 1, 1, 3, 3]),
        ("ddim", 9, list(range(9))),
        ("heun", 4, [0, 1, 1, 3, 3, 5, 5]),
        ("euler", 1, [0]),
    ]
    expected: list[Tensor] = []
    for scheduler, steps, positions in turns:
        stage.pipe.scheduler = pipes.SCHEDULERS[scheduler]()
        expected.append(stage.expected(steps, positions))
        assert error(stage.base(steps), expected[-1]) > CLEAR / 5
    with stage.bundle.attach(stage.pipe, mode):
        for _ in range(2):
            for (scheduler, steps, _), wanted in zip(turns, expected, strict=True):
                stage.pipe.scheduler = pipes.SCHEDULERS[scheduler]()
                assert error(stage.base(steps), wanted) <= 1e-5
