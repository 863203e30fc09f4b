"""What is saved, copied or loaded while a bundle is attached: the base, or a refusal."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from lorabake.errors import AttachError

from ..runtime import pipes
from .hand import by_weights
from .ledger import Ledger
from .stage import CLEAR, Stage, bits, error, names, render, settle

MODES = ("fused", "hooks")
STEPS = 4


@pytest.fixture
def stage(tmp_path: Path, seed: int) -> Stage:
    return Stage(pipes.sd(), tmp_path, seed)


def _written(save: Callable[[Any, Any], object], thing: Any) -> Any:
    file = io.BytesIO()
    save(thing, file)
    file.seek(0)
    return file


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.deepcopy of the UNet": lambda pipe: copy.deepcopy(pipe.unet),
    "copy.deepcopy of the pipeline": lambda pipe: copy.deepcopy(pipe).unet,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe.unet)),
    "torch.save of the UNet": lambda pipe: torch.load(
        _written(torch.save, pipe.unet), weights_only=False
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", COPIES)
def test_copies(stage: Stage, row: str, mode: Any, ledger: Ledger) -> None:
    """A copy would share the replay's hooks with the original, and keep them after its end."""
    expected, before = stage.expected(STEPS), bits(stage.root)
    with stage.bundle.attach(stage.pipe, mode):
        render(stage.pipe, STEPS)
        with pytest.raises(AttachError, match=r"bundle is attached.*[Dd]etach"):
            COPIES[row](stage.pipe)
        assert error(render(stage.pipe, STEPS), expected) <= 1e-5
    assert bits(stage.root) == before
    twin = COPIES[row](stage.pipe)
    assert all(
        torch.equal(a, b) for a, b in zip(twin.parameters(), stage.root.parameters(), strict=True)
    )
    ledger.refused("beside", row, mode, "asks to detach first")


def _saved_unet(pipe: Any, folder: Path) -> dict[str, Tensor]:
    pipe.unet.save_pretrained(folder)
    return UNet2DConditionModel.from_pretrained(folder).state_dict()


def _saved_pipe(pipe: Any, folder: Path) -> dict[str, Tensor]:
    pipe.save_pretrained(folder)
    nothing: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker"))
    nothing["feature_extractor"] = None
    loaded: Any = StableDiffusionPipeline.from_pretrained(folder, **nothing)
    return loaded.unet.state_dict()


STATES: dict[str, Callable[[Any, Path], dict[str, Tensor]]] = {
    "state_dict": lambda pipe, _: pipe.unet.state_dict(),
    "torch.save of the state_dict": lambda pipe, _: torch.load(
        _written(torch.save, pipe.unet.state_dict())
    ),
    "save_pretrained of the UNet": _saved_unet,
    "save_pretrained of the pipeline": _saved_pipe,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", STATES)
def test_states(stage: Stage, tmp_path: Path, row: str, mode: Any, ledger: Ledger) -> None:
    """They hold the base, not what is being played."""
    expected, before = stage.expected(STEPS), bits(stage.root)
    kept = {name: weight.clone() for name, weight in stage.root.state_dict().items()}
    with stage.bundle.attach(stage.pipe, mode):
        render(stage.pipe, STEPS)
        state = STATES[row](stage.pipe, tmp_path / "saved")
        assert state.keys() == kept.keys()
        for name, weight in kept.items():
            assert torch.equal(state[name], weight), name
        assert error(render(stage.pipe, STEPS), expected) <= 1e-5
    assert bits(stage.root) == before
    ledger.ran("beside", row, mode, "holds the base weights")


@pytest.mark.parametrize("mode", MODES)
def test_load_state_dict(stage: Stage, tmp_path: Path, mode: Any, ledger: Ledger) -> None:
    other = pipes.sd(unet=pipes.tiny_unet(9))
    base = render(other, STEPS)
    with by_weights(other.unet, stage.specs, range(STEPS)):
        expected = render(other, STEPS)
    assert error(stage.base(STEPS), base) > CLEAR
    assert error(base, expected) > CLEAR
    before, own = bits(stage.root), stage.expected(STEPS)
    with stage.bundle.attach(stage.pipe, mode):
        render(stage.pipe, STEPS)
        if mode == "fused":
            with pytest.raises(AttachError, match=r"\.weight: base weights cannot be loaded"):
                stage.root.load_state_dict(other.unet.state_dict())
            assert error(render(stage.pipe, STEPS), own) <= 1e-5
        else:
            stage.root.load_state_dict(other.unet.state_dict())
            assert error(render(stage.pipe, STEPS), expected) <= 1e-5
    if mode == "fused":
        assert bits(stage.root) == before
        ledger.refused("beside", "load_state_dict", mode, "names the weight")
    else:
        assert torch.equal(stage.base(STEPS), base)
        ledger.ran("beside", "load_state_dict", mode)


@pytest.mark.parametrize("make", [pipes.sd, pipes.flux])
@pytest.mark.parametrize("mode", MODES)
def test_fused_projections(make: Any, tmp_path: Path, mode: Any, ledger: Ledger, seed: int) -> None:
    """They bypass the layers whose weights they are made of."""
    stage = Stage(make(), tmp_path, seed)
    expected = stage.expected(STEPS)
    stage.root.fuse_qkv_projections()
    before = bits(stage.root)
    with pytest.raises(AttachError, match=r"to_[qkv]\b.*unfuse_qkv_projections"):
        stage.bundle.attach(stage.pipe, mode)
    assert bits(stage.root) == before
    stage.root.unfuse_qkv_projections()
    with stage.bundle.attach(stage.pipe, mode):
        assert error(render(stage.pipe, STEPS), expected) <= 1e-5
    ledger.refused("beside", "fuse_qkv_projections", mode, "names the layers")


@pytest.mark.parametrize("mode", MODES)
def test_projections_fused_while_attached(stage: Stage, mode: Any, ledger: Ledger) -> None:
    expected, base = stage.expected(STEPS), stage.base(STEPS)
    row = "fuse_qkv_projections while attached"
    with stage.bundle.attach(stage.pipe, mode):
        render(stage.pipe, STEPS)
        stage.root.fuse_qkv_projections()
        refused = settle(lambda: render(stage.pipe, STEPS), expected, names(stage))
        stage.root.unfuse_qkv_projections()
        assert error(render(stage.pipe, STEPS), expected) <= 1e-5
    assert torch.equal(stage.base(STEPS), base)
    if refused:
        ledger.refused("beside", row, mode, "names the layers")
    else:
        ledger.ran("beside", row, mode)
