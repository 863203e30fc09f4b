from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn

from lorabake.errors import AttachError
from lorabake.runtime.clock import Clock


class Denoiser(nn.Module):
    def forward(self, hidden_states: Any, states: Any = None, timestep: Any = None) -> None: ...


class FluxDenoiser(Denoiser): ...


def clock(timesteps: Any, denoiser: nn.Module | None = None) -> Clock:
    scheduler = SimpleNamespace(timesteps=timesteps)
    return Clock(denoiser or Denoiser(), lambda: scheduler)


def flow(steps: int, shift: float = 1.0) -> torch.Tensor:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28, 50])
def test_rounded_and_divided_timesteps(steps: int, shift: float, dtype: torch.dtype) -> None:
    """SD3 is called with t, FLUX with t / 1000, both in the latents' dtype."""
    timesteps = flow(steps, shift)
    rounded = timesteps.to(dtype)
    firsts = [int((rounded == t).nonzero()[0]) for t in rounded]
    assert dtype == torch.bfloat16 or firsts == list(range(steps))
    plain, divided = clock(timesteps), clock(timesteps, FluxDenoiser())
    for i, t in zip(firsts, timesteps, strict=True):
        batch = t.expand(2).to(dtype)
        assert plain.progress((), {"timestep": batch}) == Fraction(i, steps)
        if dtype == torch.float32:
            assert divided.progress((), {"timestep": batch / 1000}) == Fraction(i, steps)
        else:
            # A quotient that is rounded again may meet its neighbour's.
            found = divided.progress((), {"timestep": batch / 1000})
            assert abs(found - Fraction(i, steps)) <= Fraction(1, steps)


def test_one_is_the_first_of_flux_and_the_last_of_sd3() -> None:
    timesteps = flow(20)
    assert float(timesteps[-1]) == 1.0
    assert float(timesteps[0]) == 1000.0
    one = {"timestep": torch.ones(2)}
    assert clock(timesteps).progress((), one) == Fraction(19, 20)
    assert clock(timesteps, FluxDenoiser()).progress((), one) == 0


def test_positional_keyword_and_number() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    it = clock(scheduler.timesteps)
    for t in (scheduler.timesteps[3], int(scheduler.timesteps[3]), float(scheduler.timesteps[3])):
        assert it.progress((None, None, t), {}) == Fraction(3, 10)
        assert it.progress((None,), {"timestep": t}) == Fraction(3, 10)


def test_a_new_schedule_is_noticed() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    it = Clock(Denoiser(), lambda: pipe.scheduler)
    pipe.scheduler.set_timesteps(10)
    assert it.progress((), {"timestep": 500}) == Fraction(4, 10)
    pipe.scheduler.set_timesteps(4)
    assert it.progress((), {"timestep": 500}) == Fraction(1, 4)
    pipe.scheduler = DDIMScheduler()
    pipe.scheduler.set_timesteps(2)
    assert it.progress((), {"timestep": 500}) == 0


def test_the_first_of_repeated_timesteps() -> None:
    it = clock([900, 500, 500, 700, 500])
    assert it.progress((), {"timestep": 500}) == Fraction(1, 5)
    assert it.progress((), {"timestep": 700}) == Fraction(3, 5)


def test_errors() -> None:
    with pytest.raises(AttachError, match="Linear takes no timestep"):
        Clock(nn.Linear(1, 1), lambda: None)
    timesteps = torch.arange(981, 0, -20)
    for wrong in (980, 1000, 982.0, torch.tensor(971), torch.tensor([960.0]), -1, float("nan")):
        with pytest.raises(AttachError, match=r"none of the scheduler's 50 \(981 … 1\)"):
            clock(timesteps).progress((), {"timestep": wrong})
    with pytest.raises(AttachError, match="different timesteps"):
        clock(timesteps).progress((), {"timestep": torch.tensor([981, 961])})
    with pytest.raises(AttachError, match="called with None as its timestep"):
        clock(timesteps).progress((1,), {})
    for none in (None, []):
        with pytest.raises(AttachError, match="no timesteps yet"):
            clock(none).progress((), {"timestep": 1})


@pytest.mark.parametrize(
    ("name", "late"), [("AuraFlow", True), ("Krea2", True), ("PRX", True), ("Flux", False)]
)
@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0])
@pytest.mark.parametrize("steps", [28, 50, 100])
def test_divided_and_rounded_in_the_order_of_the_pipeline(
    name: str, late: bool, shift: float, steps: int
) -> None:
    timesteps = flow(steps, shift)
    it = clock(timesteps, type(f"{name}Transformer", (Denoiser,), {})())
    given = timesteps / 1000 if late else timesteps.bfloat16() / 1000
    called = [float(t) for t in given.bfloat16()]
    for value in called:
        # Two may be rounded to the same value: then it is the first.
        found = it.progress((), {"timestep": torch.tensor([value], dtype=torch.bfloat16)})
        assert found == Fraction(called.index(value), steps)


def test_a_schedule_that_nobody_has_set() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    it = Clock(Denoiser(), lambda: pipe.scheduler)
    with pytest.raises(AttachError, match="DDIMScheduler has no timesteps yet"):
        it.progress((), {"timestep": 500})
    pipe.scheduler.set_timesteps(1000)
    assert it.progress((), {"timestep": 999}) == 0
    assert it.progress((), {"timestep": np.int64(499)}) == Fraction(1, 2)


def test_a_rounded_timestep_that_is_none() -> None:
    it = clock(torch.linspace(1000, 100, 10))
    for wrong in (904.0, 896.0):
        with pytest.raises(AttachError, match="none of the scheduler's 10"):
            it.progress((), {"timestep": torch.tensor([wrong], dtype=torch.bfloat16)})
    assert it.progress((), {"timestep": torch.tensor([900.0], dtype=torch.bfloat16)}) == Fraction(
        1, 10
    )
