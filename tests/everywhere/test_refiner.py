"""StableDiffusionXL's base and refiner share one plan: each replays its range of the progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from torch import Tensor

from .ledger import Ledger
from .parts import sdxl
from .parts.bundles import bake
from .parts.case import Case
from .reference import CLOSE, DIFFERENT, by_hand, error

MODES: tuple[Any, ...] = ("fused", "hooks", "auto")
HALVES = ([0.0, 0.25], [0.5, 0.75])

# diffusers' Euler hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def first_half(base: Case) -> Tensor:
    return base.run(denoising_end=0.5)


def second_half(refiner: Case, latents: Tensor) -> Tensor:
    return refiner.run(denoising_start=0.5, image=latents)


def test_each_has_its_own_unet(tmp_path: Path, ledger: Ledger, seed: int) -> None:
    base, refiner = sdxl.text2img(seed), sdxl.img2img(seed + 1)
    first, specs = bake(base.pipe, ("unet",), tmp_path, seed)
    (tmp_path / "second").mkdir()
    second, other = bake(refiner.pipe, ("unet",), tmp_path / "second", seed + 2)
    with by_hand(base.pipe, specs):
        half = first_half(base)
    with by_hand(refiner.pipe, other, start=2):
        expected = second_half(refiner, half)
    assert error(first_half(base), half) > DIFFERENT
    # What the refiner is given makes up most of what it returns.
    assert error(second_half(refiner, half), expected) > DIFFERENT
    for mode in MODES:
        with first.attach(base.pipe, mode) as replay:
            assert error(found := first_half(base), half) <= CLOSE
        assert replay.report()["progress"] == HALVES[0]
        with second.attach(refiner.pipe, mode) as replay:
            assert error(second_half(refiner, found), expected) <= CLOSE
        assert replay.report()["progress"] == HALVES[1]
        ledger.ran("pipelines", "StableDiffusionXL base, then refiner", mode)


def test_both_are_one_unet(tmp_path: Path, ledger: Ledger, seed: int) -> None:
    """`from_pipe` shares the parts; attached to one pipeline, the bundle also acts in the other."""
    base = sdxl.text2img(seed)
    shared = StableDiffusionXLImg2ImgPipeline.from_pipe(base.pipe)
    refiner = Case(shared, sdxl.img2img(seed).inputs, ("unet",))
    assert refiner.pipe.unet is base.pipe.unet
    bundle, specs = bake(base.pipe, ("unet",), tmp_path, seed)
    with by_hand(base.pipe, specs):
        half = first_half(base)
    with by_hand(refiner.pipe, specs, start=2):
        expected = second_half(refiner, half)
    assert error(second_half(refiner, first_half(base)), expected) > DIFFERENT
    for mode in MODES:
        for pipe in (base.pipe, refiner.pipe):
            with bundle.attach(pipe, mode) as replay:
                assert error(second_half(refiner, first_half(base)), expected) <= CLOSE
            assert replay.report()["progress"] == [*HALVES[0], *HALVES[1]]
        ledger.ran("pipelines", "StableDiffusionXL base and refiner of one UNet", mode)
