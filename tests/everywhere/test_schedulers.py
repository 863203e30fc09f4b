"""With every scheduler, replay gives what weights set by hand step by step give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from lorabake.runtime import Bundle

from ..runtime.naive_bundle import Spec
from ..runtime.pipes import one_level_unet
from .ledger import Ledger
from .parts import PIPELINES, schedulers, sdxl
from .parts.bundles import bake
from .parts.case import Case
from .reference import CLOSE, DIFFERENT, by_hand, error

Taken = tuple[Case, Bundle, list[Spec]]
Take = Callable[[str], Taken]

MODES: tuple[Any, ...] = ("fused", "hooks")
FEW_CLOSE = 1e-4  # one or two huge steps cancel most of the noise, and magnify float32's rounding
SIGMAS = [{"sigmas": [1.0, 0.8, 0.3, 0.1]}]
NOT_THERE = "not in diffusers"

pytestmark = [
    # diffusers' schedulers hand torch tensors to numpy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning"),
    # DPMSolverSDE asks torchsde for times that are a rounding outside of its range.
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),
]


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Take:
    """One pipeline of each kind, and its bundle, for all schedulers."""
    made: dict[str, Taken] = {}

    def take(name: str) -> Taken:
        if name not in made:
            case = PIPELINES[name](seed)
            if case.denoisers == ("unet",):
                more = sdxl.TEXT_TIME if "XL" in name else {}
                # Its calls are most of the time that this file takes.
                case.pipe.unet = one_level_unet(seed, **more).requires_grad_(requires_grad=False)
            folder = tmp_path_factory.mktemp("bundle")
            made[name] = (case, *bake(case.pipe, case.denoisers, folder, seed))
        return made[name]

    return take


def check(taken: Taken, scheduler: Any, runs: list[dict[str, Any]]) -> bool:
    """Both modes give what the reference gives, all runs in a row in one attached bundle.

    False if diffusers cannot make these runs with this scheduler, lorabake or not.
    """
    case, bundle, specs = taken
    case.pipe.scheduler = scheduler
    try:
        plain = case.run(**runs[0])
    except (ValueError, TypeError, AttributeError, AssertionError):
        return False
    expected: list[Tensor] = []
    for how in runs:
        with by_hand(case.pipe, specs, scheduler.order * start(case, how)):
            expected.append(case.run(**how))
    assert error(plain, expected[0]) > DIFFERENT
    for mode in MODES:
        with bundle.attach(case.pipe, mode):
            for how, wanted in zip(runs, expected, strict=True):
                close = FEW_CLOSE if how.get("steps", 10) < 3 else CLOSE
                assert error(case.run(**how), wanted) <= close, (mode, how)
    return True


def start(case: Case, how: dict[str, Any]) -> int:
    """The first of the steps; a scheduler of order 2 has two entries for each."""
    return case.starts[how["strength"]] if "strength" in how else 0


def steps(name: str) -> tuple[list[dict[str, Any]], str]:
    """1, 2, 4 and 10 steps, as far as the scheduler can, and what the page says of it."""
    fewest = schedulers.FEWEST.get(name, 1)
    text = "yes" if fewest == 1 else f"yes, from {fewest} steps"
    return [{"steps": count} for count in (1, 2, 4, 10) if count >= fewest], text


@pytest.mark.parametrize("name", schedulers.NOISE)
def test_steps(name: str, taken: Take, ledger: Ledger) -> None:
    runs, text = steps(name)
    assert check(taken("StableDiffusion"), schedulers.NOISE[name](), runs)
    ledger.ran("schedulers", name, "StableDiffusion", text)


@pytest.mark.parametrize("name", schedulers.NOISE)
def test_steps_of_xl(name: str, taken: Take, ledger: Ledger) -> None:
    """Karras and other sigmas are the same scheduler, so four steps have to do."""
    runs, text = steps(name)
    runs = [{"steps": 4}] if ", " in name else runs
    assert check(taken("StableDiffusionXL"), schedulers.NOISE[name](), runs)
    ledger.ran("schedulers", name, "StableDiffusionXL", text)


@pytest.mark.parametrize("name", schedulers.NOISE)
def test_strength(name: str, taken: Take, ledger: Ledger) -> None:
    runs = [{"steps": 10, "strength": strength} for strength in (0.3, 0.7)]
    assert check(taken("StableDiffusion img2img"), schedulers.NOISE[name](), runs)
    ledger.ran("schedulers", name, "strength=")


@pytest.mark.parametrize("how", [{"timesteps": [999, 700, 450, 20]}, {"sigmas": [14.0, 5.0, 1.0]}])
@pytest.mark.parametrize("name", schedulers.NOISE)
def test_custom(name: str, how: dict[str, Any], taken: Take, ledger: Ledger) -> None:
    ran = check(taken("StableDiffusion"), schedulers.NOISE[name](), [how])
    ledger.ran("schedulers", name, f"{next(iter(how))}=", "yes" if ran else NOT_THERE)


@pytest.mark.parametrize("where", ["StableDiffusion3", "Flux"])
@pytest.mark.parametrize("name", schedulers.FLOW)
def test_flow(name: str, where: str, taken: Take, ledger: Ledger) -> None:
    for runs, column in ((steps(name)[0], where), (SIGMAS, f"{where} sigmas=")):
        ran = check(taken(where), schedulers.FLOW[name](), runs)
        ledger.ran("flow-schedulers", name, column, "yes" if ran else NOT_THERE)
