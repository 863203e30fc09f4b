"""LoRAs in the conditional half alone equal two naive calls with dense weights, everywhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from .ledger import Ledger
from .one_half import in_one_half
from .parts import PIPELINES
from .parts.bundles import bake, twins
from .reference import CLOSE, DIFFERENT, by_hand, error
from .stage import bits

pytestmark = [
    # diffusers' Euler hands torch tensors to numpy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # Its Chroma uses an old name of its own.
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),
]

NONE = {
    "Flux": "FluxPipeline ran without",
    "Flux img2img": "FluxImg2ImgPipeline ran without",
    "Flux2": "Flux2Pipeline has no",
}
TWO_CALLS = (
    "Flux with true CFG", "QwenImage", "Lumina2", "Chroma", "Wan 2.1", "Wan 2.2, two transformers",
    "Wan 2.2, a timestep per token",
)  # fmt: skip
ORDERS = {"ZImage": "cu"} | dict.fromkeys(TWO_CALLS, "calls")
HOW = {"uc": ("one call", "hooks"), "cu": ("one call", "call cut in two, fused"),
       "calls": ("two calls", "fused")}  # fmt: skip


def run_of(case: Any) -> tuple[int, dict[str, Any]]:
    """Where it starts, and how it is called: from late in the schedule if it takes a strength."""
    if not case.starts:
        return 0, {"steps": 3}
    strength, start = next(iter(case.starts.items()))
    return start, {"steps": 10, "strength": strength}


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in NONE])
def test_equals_two_calls(name: str, tmp_path: Path, ledger: Ledger, seed: int) -> None:
    case, order = PIPELINES[name](seed), ORDERS.get(name, "uc")
    roots = [getattr(case.pipe, denoiser) for denoiser in case.denoisers]
    start, how = run_of(case)
    plain = case.run(**how)
    before = [bits(root) for root in roots]

    bundle, specs = bake(case.pipe, case.denoisers, tmp_path, seed)
    with in_one_half(case.pipe, specs, order, start):
        expected = case.run(**how)
    with by_hand(case.pipe, specs, start):
        assert error(case.run(**how), expected) > DIFFERENT
    assert error(plain, expected) > DIFFERENT
    for mode in ("auto", "hooks"):
        with bundle.attach(case.pipe, mode, half="conditional") as replay:
            assert error(case.run(**how), expected) <= CLOSE, mode
        report = replay.report()
        assert (report["half"], report["note"]) == ("conditional", "")
        modes = {row["mode"] for row in report["layers"]}
        assert modes == {"fused" if mode == "auto" and order != "uc" else "hooks"}

    live, specs = twins(case.pipe, case.denoisers, tmp_path, seed)
    with in_one_half(case.pipe, specs, order, start):
        expected = case.run(**how)
    with live.attach(case.pipe, half="conditional") as replay:
        assert error(case.run(**how), expected) <= CLOSE
    decided = [call for x in replay.report()["layers"] for p in x["decisions"] for call in p]
    assert {len(call) for call in decided if call is not None} == {1}
    assert torch.equal(case.run(**how), plain)
    assert [bits(root) for root in roots] == before
    for column, text in zip(("guidance", "conditional half"), HOW[order], strict=True):
        ledger.ran("halves", name, column, text)


@pytest.mark.parametrize("name", NONE)
def test_without_guidance_it_changes_nothing(
    name: str, tmp_path: Path, ledger: Ledger, seed: int
) -> None:
    case = PIPELINES[name](seed)
    bundle, _ = bake(case.pipe, case.denoisers, tmp_path, seed)
    start, how = run_of(case)
    assert start in (0, 7)
    with bundle.attach(case.pipe):
        expected = case.run(**how)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        with bundle.attach(case.pipe, half="conditional") as replay:
            assert torch.equal(case.run(**how), expected)
            case.run(**how)
    (note,) = [str(one.message) for one in warned if one.category is UserWarning]
    assert note == replay.report()["note"]
    assert NONE[name] in note
    ledger.ran("halves", name, "guidance", "none")
    ledger.ran("halves", name, "conditional half", "as both, with a warning")
