"""Replay in a model whose weights are kept elsewhere, or move while a bundle is attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn

from lorabake.errors import AttachError, OverrideError

from ..runtime import pipes
from .hand import delta, layer
from .ledger import Ledger
from .places import PLACES
from .stage import CLEAR, Stage, bits, error, names, render, settle, verdict

MODES = ("fused", "hooks", "auto")
STEPS = 3


@pytest.fixture
def stage(tmp_path: Path, seed: int) -> Stage:
    return Stage(pipes.sd(), tmp_path, seed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
def test_placed_before(stage: Stage, tmp_path: Path, place: str, mode: Any, ledger: Ledger) -> None:
    expected, base = stage.expected(STEPS), stage.base(STEPS)
    assert error(base, expected) > CLEAR
    PLACES[place](stage.pipe, tmp_path / "weights")
    assert torch.equal(stage.base(STEPS), base)
    says: list[str] = []

    def play() -> Tensor:
        with stage.bundle.attach(stage.pipe, mode) as replay:
            says.append(verdict(replay, mode))
            return stage.base(STEPS)

    refused = settle(play, expected, names(stage))
    assert torch.equal(stage.base(STEPS), base)
    if refused:
        assert mode == "fused"
        ledger.refused("weights", place, mode, "names the layers")
    else:
        ledger.ran("weights", place, mode, *says)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", PLACES)
def test_placed_while_attached(
    stage: Stage, tmp_path: Path, place: str, mode: Any, ledger: Ledger
) -> None:
    expected, base = stage.expected(STEPS), stage.base(STEPS)
    row = f"{place}, enabled while attached"
    replay = stage.bundle.attach(stage.pipe, mode)
    assert error(stage.base(STEPS), expected) <= 1e-5
    PLACES[place](stage.pipe, tmp_path / "weights")
    refused = settle(lambda: stage.base(STEPS), expected, names(stage))
    if refused and place.startswith("group") and place.endswith("to disk"):
        # The file has what the weights were at that moment, and nobody can tell diffusers.
        with pytest.warns(
            UserWarning, match="written the weights of the moment to disk; load the model"
        ):
            replay.detach()
        return ledger.refused("weights", row, mode, "names the layers; load the model again")
    replay.detach()
    assert torch.equal(stage.base(STEPS), base)
    if refused:
        ledger.refused("weights", row, mode, "names the layers")
    else:
        ledger.ran("weights", row, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", [p for p in PLACES if not p.startswith("group")])
def test_taken_back_while_attached(
    stage: Stage, tmp_path: Path, place: str, mode: Any, ledger: Ledger
) -> None:
    """What accelerate has put elsewhere comes back with its hooks."""
    expected, kept = stage.expected(STEPS), stage.twin().unet.state_dict()
    PLACES[place](stage.pipe, tmp_path / "weights")
    row = f"{place}, ended while attached"
    try:
        replay = stage.bundle.attach(stage.pipe, mode)
    except AttachError:
        assert mode == "fused"
        ledger.refused("weights", row, mode, "names the layers")
        return
    with replay:
        assert error(stage.base(STEPS), expected) <= 1e-5
        remove_hook_from_module(stage.root, recurse=True)
        refused = settle(lambda: stage.base(STEPS), expected, names(stage))
    for name, weight in stage.root.state_dict().items():
        assert torch.equal(weight, kept[name]), name
    if refused:
        ledger.refused("weights", row, mode, "names the layers")
    else:
        ledger.ran("weights", row, mode)


@pytest.mark.parametrize("mode", MODES)
def test_other_dtypes_while_attached(stage: Stage, mode: Any, ledger: Ledger) -> None:
    clean = {name: weight.clone() for name, weight in stage.root.state_dict().items()}
    unattached = stage.twin()
    with stage.bundle.attach(stage.pipe, mode):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            stage.pipe.to(dtype)
            unattached.to(dtype)
            found = stage.base(STEPS)
            expected = Stage.expected(_with(stage, unattached), STEPS)
            assert found.dtype == dtype
            assert error(found, expected) <= (6e-2 if dtype == torch.bfloat16 else 1e-5)
            assert error(render(unattached, STEPS), expected) > CLEAR
    for name, weight in stage.root.state_dict().items():
        assert weight.dtype == torch.float64
        before, now = clean[name].double(), unattached.unet.state_dict()[name]
        assert torch.equal(weight, before) or torch.equal(weight, now), name
    ledger.ran("weights", "pipe.to(dtype) while attached", mode)


def _with(stage: Stage, pipe: Any) -> Stage:
    """The stage around another pipeline."""
    other = object.__new__(Stage)
    other.__dict__ |= stage.__dict__ | {"pipe": pipe}
    return other


def test_a_weight_is_rounded_once_after_the_conversion(stage: Stage) -> None:
    kept = {s.module: layer(stage.root, s.module).weight.detach().clone() for s in stage.specs}
    with stage.bundle.attach(stage.pipe, "fused"):
        stage.base(2)
        stage.pipe.to(torch.bfloat16)
        stage.base(2)
        rounded: list[Tensor] = []
        for spec in stage.specs:
            weight = layer(stage.root, spec.module).weight.detach()
            exact = kept[spec.module].bfloat16().double() + delta(spec, 1, 2)
            assert weight.dtype == torch.bfloat16
            assert float(((weight - exact).abs() - exact.abs() * 2**-8).max()) <= 1e-6
            rounded.append((weight != exact.bfloat16()).double().flatten())
        # Sums in another order may round the other way where they meet a midpoint.
        assert float(torch.cat(rounded).mean()) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_detached_without_another_call(stage: Stage, mode: Any, dtype: torch.dtype) -> None:
    clean = {name: weight.clone() for name, weight in stage.root.state_dict().items()}
    expected = stage.expected(2)
    with stage.bundle.attach(stage.pipe, mode):
        assert error(stage.base(2), expected) <= 1e-5
        stage.pipe.to(dtype)
    for name, weight in stage.root.state_dict().items():
        assert torch.equal(weight, clean[name].to(dtype)), name


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_channels_last(stage: Stage, mode: Any, attached: bool, ledger: Ledger) -> None:
    expected = stage.expected(STEPS)
    if not attached:
        stage.root.to(memory_format=torch.channels_last)
    before = bits(stage.root)
    with stage.bundle.attach(stage.pipe, mode):
        if attached:
            stage.base(1)
            stage.root.to(memory_format=torch.channels_last)
        assert error(stage.base(STEPS), expected) <= 1e-5
    assert bits(stage.root) == before
    convolutions = [m for m in stage.root.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    row = "channels_last while attached" if attached else "channels_last"
    ledger.ran("weights", row, mode)


@pytest.mark.parametrize("mode", MODES)
def test_kept_on_the_cpu(stage: Stage, mode: Any, ledger: Ledger) -> None:
    expected, before = stage.expected(STEPS), bits(stage.root)
    with stage.bundle.attach(stage.pipe, mode, keep="cpu"):
        assert error(stage.base(STEPS), expected) <= 1e-5
    assert bits(stage.root) == before
    with pytest.raises(OverrideError, match="keep"):
        stage.bundle.attach(stage.pipe, mode, keep="gpu")  # type: ignore[arg-type] - the point
    ledger.ran("weights", 'keep="cpu"', mode)
