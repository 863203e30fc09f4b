"""Training goes down, repeats itself, resumes as if nothing had been, and stops when it should."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorabake.errors import OutputError
from lorabake.training import checkpoint
from lorabake.training.loop import DivergedError, Schedule, State, train
from lorabake.training.objective import Loss

from .stage import build

SCHEDULE = Schedule(updates=12, lr=0.02, lambda_=0.01, similarity="mean", seed=0)


class Stopped(Exception):  # noqa: N818 - no error
    pass


def run(schedule: Schedule, state: State | None = None, stop: int = 10**9) -> State:
    """Train in a fresh model, up to `stop` updates."""
    stage = build("sd15", dtype=torch.float32)
    latest = state or State.new(stage.coefficients.flat.shape[1])

    def done(state: State) -> None:
        nonlocal latest
        latest = state
        if len(state.history) == stop:
            raise Stopped

    with contextlib.suppress(Stopped):
        return train(stage.problem, stage.coefficients, schedule, latest, done)
    return latest


def same(one: State, other: State) -> bool:
    pairs = ((one.flat, other.flat), (one.first, other.first), (one.second, other.second))
    return one.history == other.history and all(torch.equal(a, b) for a, b in pairs)


def test_losses_go_down_and_a_seed_repeats_them(tmp_path: Path) -> None:
    whole = run(SCHEDULE)
    # Updates 4 to 7 see the noise of 0 to 3 once more.
    first, last = (
        [sum(part) for part in zip(*losses, strict=True)]
        for losses in (whole.history[:4], whole.history[4:8])
    )
    assert all(b < a for a, b in zip(first, last, strict=True))
    assert not same(whole, run(replace(SCHEDULE, seed=1)))

    part = run(SCHEDULE, stop=5)
    latents = (torch.zeros(1, 2), torch.ones(1, 2))
    checkpoint.save(tmp_path / "c", {"seed": 0}, latents, part)
    loaded = checkpoint.load(tmp_path / "c", {"seed": 0}, part.flat.shape[1])
    assert loaded is not None
    references, resumed = loaded
    assert same(part, resumed)
    assert all(torch.equal(a, b) for a, b in zip(references, latents, strict=True))
    assert same(whole, run(SCHEDULE, resumed))


def test_it_stops_when_the_similarity_is_gone() -> None:
    state = run(replace(SCHEDULE, updates=60, lr=0.05, lambda_=10, similarity="paper"))
    assert len(state.history) < 60
    columns = state.flat.shape[1]
    assert float((state.flat[0] * state.flat[1]).abs().sum()) < 0.02 * columns


def test_a_diverging_run_goes_back_to_before_the_step_that_led_there() -> None:
    good = run(SCHEDULE, stop=2)
    with pytest.raises(DivergedError, match=r"update 4$") as caught:
        run(replace(SCHEDULE, lr=1e30), good)
    assert same(caught.value.good, good)
    assert len(run(SCHEDULE, caught.value.good).history) == SCHEDULE.updates


def test_states_are_not_touched_by_what_follows() -> None:
    seen: list[tuple[State, torch.Tensor]] = []
    stage = build("sd15", dtype=torch.float32)
    start = State.new(stage.coefficients.flat.shape[1])
    keep = lambda state: seen.append((state, state.flat.clone()))  # noqa: E731
    train(stage.problem, stage.coefficients, replace(SCHEDULE, updates=3), start, keep)
    assert all(torch.equal(state.flat, then) for state, then in seen)
    assert torch.equal(start.flat, torch.ones_like(start.flat))


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "c", replace(State.new(3), history=(Loss(1, 2, 3),))
    assert checkpoint.load(path, {}, 3) is None
    checkpoint.save(path, {"seed": 0, "base": "a"}, (torch.zeros(1), torch.zeros(1)), state)
    with pytest.raises(OutputError, match=r"another training \(base, seed differ\)"):
        checkpoint.load(path, {"seed": 1, "base": "b"}, 3)
    with pytest.raises(OutputError, match="layers differ"):
        checkpoint.load(path, {"seed": 0, "base": "a"}, 4)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(OutputError, match="damaged"):
        checkpoint.load(path, {"seed": 0, "base": "a"}, 3)
    with pytest.raises(OutputError, match="damaged"):
        checkpoint.claim(path, resume=False, force=True)


def test_an_interrupted_training_is_not_lost_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint.claim(path, resume=False, force=False)
    checkpoint.save(path, {}, (torch.zeros(1), torch.zeros(1)), State.new(3))
    checkpoint.claim(path, resume=True, force=False)
    checkpoint.claim(path, resume=False, force=True)
    with pytest.raises(OutputError, match="--resume, or start again with --force"):
        checkpoint.claim(path, resume=False, force=False)
    with pytest.raises(OutputError, match="is a folder"):
        checkpoint.claim(tmp_path, resume=True, force=False)
