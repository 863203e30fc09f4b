"""PEFT adapters keep working beside a bundle, whatever is done to them and when."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..runtime import pipes
from .adapters import SAME, STORIES, add, load
from .hand import by_weights, layer
from .ledger import Ledger
from .stage import CLEAR, Stage, error, names, render, settle

# A second adapter is what some of these are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:while a bundle was attached, a LoRA was fused"),
]
MODES = ("fused", "hooks")
STEPS = 3


@pytest.fixture
def stage(tmp_path: Path, seed: int) -> Stage:
    return Stage(pipes.sd(), tmp_path, seed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", STORIES)
def test_story(stage: Stage, row: str, mode: Any, ledger: Ledger) -> None:
    story, twin, lone = STORIES[row], stage.twin(), stage.expected(STEPS)
    story.before(twin)
    story.during(twin)
    without = render(twin, STEPS)
    with by_weights(twin.unet, stage.specs, range(STEPS)):
        expected = render(twin, STEPS)
    assert error(without, expected) > CLEAR
    assert (error(lone, expected) > CLEAR) == story.live

    story.before(stage.pipe)
    before = weights(stage)
    with stage.bundle.attach(stage.pipe, mode):
        render(stage.pipe, STEPS)
        story.during(stage.pipe)
        refused = settle(lambda: render(stage.pipe, STEPS), expected, ["a LoRA was fused"])
    if refused:
        assert story.merges
        assert all(torch.equal(a, b) for a, b in zip(weights(stage), before, strict=True))
        ledger.refused("beside", row, mode, "asks to detach first")
    else:
        assert error(render(stage.pipe, STEPS), without) <= (1e-5 if story.merges else 0)
        ledger.ran("beside", row, mode)


@pytest.mark.parametrize("when", ["before", "while attached", "by its UNet"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost_by_merging(stage: Stage, mode: Any, when: str) -> None:
    kept, base, expected = weights(stage), stage.base(STEPS), stage.expected(STEPS)
    load(stage.pipe)
    if when == "before":
        stage.pipe.fuse_lora()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with stage.bundle.attach(stage.pipe, mode):
            render(stage.pipe, STEPS)
            if when == "while attached":
                stage.pipe.fuse_lora()
            elif when == "by its UNet":
                stage.root.fuse_lora()
    if not any("a LoRA was fused" in str(each.message) for each in warned):
        stage.pipe.unfuse_lora()
    for now, before in zip(weights(stage), kept, strict=True):
        assert error(now, before) <= 1e-5
    stage.pipe.unload_lora_weights()
    assert error(stage.base(STEPS), base) <= 1e-5
    with stage.bundle.attach(stage.pipe, mode):
        assert error(stage.base(STEPS), expected) <= 1e-5


def weights(stage: Stage) -> list[Tensor]:
    return [layer(stage.root, name).weight.detach().clone() for name in names(stage)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [lambda: pipes.sd(text_encoder=pipes.clip()), pipes.flux])
def test_scale_of_a_call(make: Any, tmp_path: Path, mode: Any, ledger: Ledger, seed: int) -> None:
    """It scales the adapters and not the bundle, for that call alone."""
    stage = Stage(make(), tmp_path, seed)
    key = "cross_attention_kwargs" if stage.name == "unet" else "joint_attention_kwargs"
    add("one", SAME)(stage.pipe)
    twin = stage.twin()
    asked: list[dict[str, Any]] = [{}, {key: {"scale": 0.5}}, {key: {"scale": 0.0}}, {}]

    def play(pipe: Any) -> list[Tensor]:
        return [render(pipe, STEPS, **more) for more in asked]

    expected: list[Tensor] = []
    for more in asked:
        with by_weights(getattr(twin, stage.name), stage.specs, range(STEPS)):
            expected.append(render(twin, STEPS, **more))
    with stage.bundle.attach(stage.pipe, mode):
        found = play(stage.pipe)
    assert torch.equal(found[0], found[3])
    for one, wanted, base in zip(found, expected, play(twin), strict=True):
        assert error(one, wanted) <= 1e-5
        assert error(base, wanted) > CLEAR
    assert error(expected[0], expected[1]) > CLEAR / 5
    assert error(expected[1], expected[2]) > CLEAR / 5
    ledger.ran("beside", f'PEFT adapter, {key}={{"scale": …}}', mode)
