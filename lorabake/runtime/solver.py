"""Solvers that go back to a sample of their own, which knows nothing of a refinement."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .predicted import kinds, level


def probes(scheduler: Any) -> bool:  # noqa: ANN401 - any scheduler of diffusers
    """Whether the next step only looks ahead: the one after it starts from an earlier sample."""
    names = kinds(scheduler)
    if "PNDMScheduler" in names:
        done, first = scheduler.counter, len(scheduler.prk_timesteps)
        if scheduler.config.skip_prk_steps:
            return done == 0 and len(scheduler.timesteps) > 1
        return done < first and done % 4 != 3
    if "HeunDiscreteScheduler" in names:
        done = scheduler.step_index
        done = (scheduler.begin_index or 0) if done is None else done
        return scheduler.state_in_first_order and done < len(scheduler.timesteps) - 1
    return False


def carry(scheduler: Any, change: Tensor) -> None:  # noqa: ANN401 - as above
    """After a step, tell its solver of a change to the new sample, if it would be lost.

    UniPC's corrector computes the sample anew from the one before, so that one is moved as far as
    it takes to arrive at the same change.

    Args:
        scheduler: Behind the step.
        change: What the new sample is made smaller by.
    """
    if "UniPCMultistepScheduler" not in kinds(scheduler):
        return
    index: int = scheduler.step_index
    if index == len(scheduler.timesteps):
        return
    alphas, sigmas = zip(*(level(scheduler, i) for i in (index - 1, index)), strict=True)
    before, after = sigmas if scheduler.predict_x0 else alphas
    kept = scheduler.last_sample
    scheduler.last_sample = (kept - before / after * change).to(kept.dtype)
