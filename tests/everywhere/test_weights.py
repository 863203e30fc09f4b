"""Replay beside every kind of base weight, or a refusal that names the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorabake.errors import AttachError

from ..runtime import pipes
from .hand import layer
from .ledger import Ledger
from .stage import CLEAR, Stage, bits, error, names, settle, verdict
from .weights import KINDS, cast_to_fp8, packed

MODES = ("fused", "hooks", "auto")
STEPS = 4


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def stage(kind: str, tmp_path_factory: pytest.TempPathFactory, seed: int) -> Stage:
    folder = tmp_path_factory.mktemp("weights")
    pipe, plain = KINDS[kind].make(folder)
    return Stage(pipe, folder, seed, plain=plain, size=0.1)


@pytest.fixture(scope="module")
def expected(stage: Stage) -> torch.Tensor:
    return stage.beside(STEPS)


@pytest.mark.parametrize("mode", MODES)
def test_kind(stage: Stage, kind: str, expected: torch.Tensor, mode: Any, ledger: Ledger) -> None:
    odd = [s.module for s in stage.specs if packed(layer(stage.root, s.module))]
    dense = [s.module for s in stage.specs if s.module not in odd]
    before = bits(stage.root)
    assert bool(odd) == KINDS[kind].packed
    if mode == "fused" and odd:
        with pytest.raises(AttachError, match=rf"\.{odd[0]}\b.* and \d+ more") as refusal:
            stage.bundle.attach(stage.pipe, mode)
        assert not any(name in str(refusal.value) for name in dense)
        assert bits(stage.root) == before
        ledger.refused("weights", kind, mode, "names the layers")
        return
    with stage.bundle.attach(stage.pipe, mode) as replay:
        found = stage.base(STEPS)
    assert error(found, expected) <= KINDS[kind].tolerance
    assert error(stage.base(STEPS), expected) > CLEAR
    assert bits(stage.root) == before
    report = replay.report()["layers"]
    hooked = {s.module for s in stage.specs} if mode == "hooks" else set(odd)
    assert {row["module"] for row in report if row["mode"] == "hooks"} == hooked
    ledger.ran("weights", kind, mode, verdict(replay, mode))


@pytest.mark.parametrize("mode", MODES)
def test_fp8_casting_begins_while_attached(
    tmp_path: Path, mode: Any, ledger: Ledger, seed: int
) -> None:
    row = "fp8 by layerwise casting, enabled while attached"
    reference, stage = (Stage(pipes.sd(), tmp_path, seed, size=0.1) for _ in range(2))
    cast_to_fp8(reference.root, torch.float32)
    expected, base = reference.beside(STEPS), reference.base(STEPS)
    with stage.bundle.attach(stage.pipe, mode):
        stage.base(1)
        cast_to_fp8(stage.root, torch.float32)
        refused = settle(lambda: stage.base(STEPS), expected, names(stage))
    assert error(base, expected) > CLEAR
    assert torch.equal(stage.base(STEPS), base)
    for (name, found), wanted in zip(
        stage.root.named_parameters(), reference.root.parameters(), strict=True
    ):
        assert found.dtype == wanted.dtype
        assert torch.equal(found.float(), wanted.float()), name
    if refused:
        ledger.refused("weights", row, mode, "names the layers")
    else:
        ledger.ran("weights", row, mode)
