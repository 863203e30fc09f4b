"""In every family of pipelines, replay gives what weights set by hand step by step give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorabake.runtime import AttachError

from .ledger import Ledger
from .parts import PIPELINES, sana
from .parts.bundles import bake, twins
from .reference import CLOSE, DIFFERENT, by_hand, error

MODES: tuple[Any, ...] = ("fused", "hooks", "auto")

pytestmark = [
    # diffusers' Euler hands torch tensors to numpy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # Its Chroma uses an old name of its own.
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("name", PIPELINES)
def test_equals_the_reference(name: str, tmp_path: Path, ledger: Ledger, seed: int) -> None:
    """Four steps of the whole schedule; ten, entered late, where a pipeline takes a strength."""
    case = PIPELINES[name](seed)
    bundle, specs = bake(case.pipe, case.denoisers, tmp_path, seed)
    runs: list[tuple[int, dict[str, Any]]] = [(0, {"steps": 4})]
    if case.starts:
        runs = [(0, {"steps": 4, "strength": 1.0})]
        runs += [(start, {"steps": 10, "strength": s}) for s, start in case.starts.items()]
    for start, how in runs:
        with by_hand(case.pipe, specs, start):
            expected = case.run(**how)
        assert error(case.run(**how), expected) > DIFFERENT
        for mode in MODES:
            with bundle.attach(case.pipe, mode):
                assert error(case.run(**how), expected) <= CLOSE, (mode, how)
    for mode in MODES:
        ledger.ran("pipelines", name, mode)


@pytest.mark.parametrize("name", PIPELINES)
def test_live_choices_leave_one_lora(name: str, tmp_path: Path, ledger: Ledger, seed: int) -> None:
    """Between two equal LoRAs any choice gives that one; every sample chooses in every call."""
    case = PIPELINES[name](seed)
    bundle, specs = twins(case.pipe, case.denoisers, tmp_path, seed)
    how: dict[str, Any] = {"steps": 4, "strength": 1.0} if case.starts else {"steps": 4}
    with by_hand(case.pipe, specs):
        expected = case.run(**how)
    assert error(case.run(**how), expected) > DIFFERENT
    with bundle.attach(case.pipe, "live") as replay:
        assert error(case.run(**how), expected) <= CLOSE
    calls = [call for x in replay.report()["layers"] for p in x["decisions"] for call in p]
    assert all(call and {*call} <= {0, 1} for call in calls if call is not None)
    assert sum(call is not None for call in calls) >= len(specs)
    ledger.ran("pipelines", name, "live")


@pytest.mark.parametrize("mode", MODES)
def test_a_timestep_of_its_own_is_refused(
    mode: Any, tmp_path: Path, ledger: Ledger, seed: int
) -> None:
    """Sana Sprint's transformer is called with what is no timestep of its scheduler."""
    case = sana.sana_sprint(seed)
    bundle, _ = bake(case.pipe, case.denoisers, tmp_path, seed)
    plain = case.run(2)
    with bundle.attach(case.pipe, mode), pytest.raises(AttachError, match="timestep"):
        case.run(2)
    assert torch.equal(case.run(2), plain)
    ledger.refused("pipelines", "Sana Sprint", mode, "its timesteps are not its scheduler's")
