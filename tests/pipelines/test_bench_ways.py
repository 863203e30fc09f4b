"""The benchmark's ways compute what they are named after, and put everything back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from sys import platform

import pytest
import torch

from lorabake.pipelines.bench import compare
from lorabake.pipelines.bench.memory import Peak
from lorabake.pipelines.bench.ways import LIVE as LIVE_WAYS
from lorabake.pipelines.bench.ways import WAYS
from lorabake.runtime import read

from ..oracle import klora
from ..runtime import pipes
from ..runtime.naive_bundle import LIVE, all_live, write
from .bench_case import Case, case_of, error, same

BY_KEY = {way.key: way for way in WAYS}

# diffusers' Euler and Heun hand torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def case(folder: Path) -> Case:
    return case_of(folder)


@pytest.mark.parametrize(
    ("way", "gates"), [("floor", (1, 0)), ("peft_one", (1, 0)), ("peft_two", (1, 1))]
)
def test_constant_ways(case: Case, way: str, gates: tuple[float, float]) -> None:
    expected = case.reference(lambda name, i: gates)
    plain = case.draw()
    with BY_KEY[way].on(case.bundle, case.pipe):
        assert error(case.draw(), expected) <= 1e-4
    assert error(plain, expected) > 1e-2
    assert torch.equal(case.draw(), plain)


def test_recomputing_is_the_algorithm_that_lorabake_replays(case: Case) -> None:
    verdicts = klora(*case.loras, 6)
    rows = [verdict.select for verdict in verdicts.values()]
    assert sum({0, 1} <= {*row} for row in rows) > 3

    def chosen(name: str, i: int) -> tuple[float, float]:
        choice = verdicts[name].select[i]
        return (float(choice == 0), float(choice == 1))

    expected = case.reference(chosen)
    for way in ("recomputed", "fused", "hooks"):
        with BY_KEY[way].on(case.bundle, case.pipe):
            case.draw(3)  # an image before, which ends elsewhere in the plan
            assert error(case.draw(), expected) <= 1e-4
    assert error(case.draw(), expected) > 1e-2


def test_recomputing_with_repeated_timesteps(case: Case) -> None:
    case.pipe.scheduler = pipes.SCHEDULERS["heun"]()
    with BY_KEY["fused"].on(case.bundle, case.pipe):
        expected = case.draw()
    with BY_KEY["recomputed"].on(case.bundle, case.pipe):
        assert error(case.draw(), expected) <= 1e-4
    assert error(case.draw(), expected) > 1e-2


@pytest.mark.parametrize("way", BY_KEY)
def test_everything_is_put_back(case: Case, way: str) -> None:
    before = case.snapshot()
    with BY_KEY[way].on(case.bundle, case.pipe):
        case.draw(2)
        assert way == "base" or not same(case.snapshot(), before)
    assert same(case.snapshot(), before)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), BY_KEY[way].on(case.bundle, case.pipe):
        case.draw(2, callback_on_step_end=interrupt)
    assert same(case.snapshot(), before)


def test_an_interrupted_comparison_puts_everything_back(case: Case) -> None:
    before = case.snapshot()
    for last in (3, 9, 13):
        count = iter(range(last))

        def draw(steps: int, count: Iterator[int] = count) -> str:
            case.draw(steps)
            if next(count, None) is None:
                raise KeyboardInterrupt
            return ""

        with pytest.raises(KeyboardInterrupt):
            compare(case.pipe, case.bundle, draw, steps=(1,), repeats=1)
        assert same(case.snapshot(), before)


@pytest.mark.skipif(platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_of_memory() -> None:
    peak, large = Peak(torch.device("cpu")), 1 << 25
    for _ in range(2):  # a peak before does not count
        peak.start()
        assert (peak.read() or 0) < large
        torch.ones(large // 2).sum()
        assert large < (peak.read() or 0) < 4 * large


def test_a_bundle_that_chooses_live_has_its_own_ways(tmp_path: Path) -> None:
    pipe = pipes.sdxl()
    specs = all_live("unet", pipe.unet)
    bundle = read(write(tmp_path / "b", specs, {"unet": pipe.unet}, size=0.1, **LIVE))
    plain = pipes.render(pipe, 2)

    def draw(steps: int) -> str:
        pipes.render(pipe, steps)
        return "tiny"

    result = compare(pipe, bundle, draw, steps=(2,), repeats=1)
    ways = [row.way for row in result.rows]
    assert ways == ["base", "floor", "peft_one", "peft_two", "live", "live_256"]
    assert all(not row.reason and row.image[2] > 0 for row in result.rows)
    assert torch.equal(pipes.render(pipe, 2), plain)
    for way in LIVE_WAYS[-2:]:
        with way.on(bundle, pipe):
            assert not torch.equal(pipes.render(pipe, 2), plain)
