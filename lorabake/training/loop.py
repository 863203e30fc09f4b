"""Training the coefficients: Adam on eq. 3, resumable at every update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .branches import BOTH
from .coefficients import Coefficients
from .objective import SIMILARITIES, Loss, Similarity
from .problem import Lesson, Problem

VANISHED = 1e-2
"""Share of its first value below which the similarity term counts as gone (early stop)."""


@dataclass(frozen=True, eq=False)
class State:
    """Where a training is: all that it needs to go on as if it had never stopped.

    Attributes:
        flat: The coefficients, `[2, columns]`, on the CPU like the next two.
        first: Adam's running mean of the gradient, like `flat`.
        second: Adam's running mean of its square, like `flat`.
        history: Loss parts of the updates done so far.
    """

    flat: Tensor
    first: Tensor
    second: Tensor
    history: tuple[Loss, ...] = ()

    @classmethod
    def new(cls, columns: int) -> State:
        """All coefficients 1: the direct merge."""
        zeros = torch.zeros(2, columns)
        return cls(torch.ones(2, columns), zeros, zeros.clone())


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Attributes:
        updates: Gradient steps, fewer if the similarity term vanishes.
        lr: Adam's learning rate.
        lambda_: Factor on the similarity term.
        similarity: Which similarity term.
        seed: Of timesteps, noise and the order of the references.
    """

    updates: int
    lr: float
    lambda_: float
    similarity: Similarity
    seed: int


class DivergedError(ArithmeticError):
    """A loss or gradient is not finite.

    Attributes:
        update: In which update, counted from 1.
        good: The last state whose losses were finite: the one before the step that led here.
    """

    def __init__(self, update: int, what: str, good: State) -> None:
        super().__init__(f"{what} became NaN or infinite at update {update}")
        self.update, self.good = update, good


def train(
    problem: Problem,
    coefficients: Coefficients,
    schedule: Schedule,
    state: State,
    done: Callable[[State], None],
) -> State:
    """Train `coefficients`, which the problem's branches use.

    Args:
        problem: Teachers and student.
        coefficients: Take over the state's values, then change in place.
        schedule: How.
        state: Where to start from.
        done: Called with the state after each update.

    Returns:
        The last state.

    Raises:
        DivergedError: A loss or gradient is not finite.
    """
    coefficients.load(state.flat)
    flat = coefficients.flat
    optimiser = torch.optim.Adam([flat], lr=schedule.lr)
    adam = _adopt(optimiser, flat, state)
    term = SIMILARITIES[schedule.similarity]
    with torch.no_grad():
        least = VANISHED * float(term(torch.ones_like(flat), coefficients.layer))
    good = state
    for update in range(len(state.history), schedule.updates):
        similarity = term(flat, coefficients.layer)
        if float(similarity.detach()) < least:
            break
        content, style = _fidelity(problem, coefficients, problem.lesson(schedule.seed, update))
        (schedule.lambda_ * similarity).backward()
        loss = Loss(content, style, float(similarity.detach()))
        if what := _fault(loss, coefficients.grad):
            raise DivergedError(update + 1, what, good)
        optimiser.step()
        m, first, second = map(_kept, (flat, *adam))
        good, state = state, State(m, first, second, (*state.history, loss))
        done(state)
    return state


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _fidelity(problem: Problem, coefficients: Coefficients, lesson: Lesson) -> tuple[float, float]:
    """The first two terms of eq. 3; their gradient is left in `coefficients.grad`."""
    # Gradients of a float16 model underflow without a factor on the loss, and may overflow with it;
    # it is found anew each time, so that a resumed training does the same.
    factor = 2.0**12 if next(problem.model.parameters()).dtype == torch.float16 else 1.0
    while True:
        coefficients.grad.zero_()
        with problem.branches.acting(BOTH, zipped=True):
            content, style = problem.losses(lesson)
            ((content + style) * factor).backward()
        coefficients.grad.div_(factor)
        if factor <= 1 or bool(coefficients.grad.isfinite().all()):
            return float(content.detach()), float(style.detach())
        factor /= 8


def _adopt(optimiser: torch.optim.Adam, flat: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """Put a state into a fresh optimiser; the two means that it updates from now on."""
    first, second = (mean.to(flat, copy=True) for mean in (state.first, state.second))
    step = torch.tensor(float(len(state.history)))
    optimiser.state[flat] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    return first, second


def _fault(loss: Loss, gradient: Tensor) -> str:
    """What is not finite; empty if all is."""
    names = ("the content loss", "the style loss", "the similarity")
    for name, value in zip(names, loss, strict=True):
        if not math.isfinite(value):
            return name
    return "" if bool(gradient.isfinite().all()) else "the gradient"
