"""A whole pipeline run whose weights are set to W0 + Σ g·ΔW by hand; knows nothing of lorabake."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor

from ..runtime.naive_bundle import Spec, gates

CLOSE = 3e-5  # float32 in another order of sums; a plan shifted by one step is off by 9e-4 and more
DIFFERENT = 1e-3  # the base model's own output is further away than this


@contextmanager
def by_hand(pipe: Any, specs: list[Spec], start: int = 0) -> Generator[None]:
    """Sets the weights when the scheduler is given its timesteps and after each of its steps.

    The scheduler is wrapped, not the denoiser and not a callback: what lorabake listens to must
    not be what it is judged by, and some pipelines have no callback.

    Args:
        pipe: A pipeline of diffusers; at the end its weights are the tensors that they were.
        specs: Layers of the bundle, of any of the pipeline's components.
        start: Position in the scheduler's full `timesteps` at which the run starts.
    """
    scheduler = pipe.scheduler
    layers = [getattr(pipe, s.component).get_submodule(s.module) for s in specs]
    kept = [layer.weight.data for layer in layers]
    position = start

    def times() -> list[float]:
        return [float(t) for t in scheduler.timesteps]

    def put() -> None:
        count, first = len(times()), times().index(times()[position])
        for s, layer, w0 in zip(specs, layers, kept, strict=True):
            g = gates(s, first, count)
            layer.weight.data = w0 + g[0] * s.deltas[0] + g[1] * s.deltas[1]

    set_timesteps, step = scheduler.set_timesteps, scheduler.step

    @wraps(set_timesteps)
    def set_and_put(*args: Any, **kwargs: Any) -> None:
        nonlocal position
        set_timesteps(*args, **kwargs)
        position = start
        put()

    @wraps(step)
    def step_and_put(output: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal position
        # The premise of all this: the run goes through the timesteps in order, from `start`.
        assert float(timestep) == times()[position]
        result = step(output, timestep, *args, **kwargs)
        position += 1
        if position < len(times()):
            put()
        return result

    scheduler.set_timesteps, scheduler.step = set_and_put, step_and_put
    try:
        yield
    finally:
        del scheduler.set_timesteps, scheduler.step
        for layer, w0 in zip(layers, kept, strict=True):
            layer.weight.data = w0


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())
