"""Teachers and student on the same noisy latents, in as few forwards as the batch allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..pipelines.blame import blame
from ..pipelines.conditions import Condition, joined
from ..pipelines.noising import Noised, Noising
from .branches import BOTH, CONTENT, STYLE, Branches, Sides
from .objective import Norm, distance

AHEAD = 4
"""Samples of each side in a pass of the teachers, if an update does not need more: larger batches
are cheaper per sample."""
USES = 2
"""How often each lesson is learnt from."""


References = tuple[Tensor, Tensor]
"""Clean latents of content and of style, `[n, …]` each."""


class Lesson(NamedTuple):
    """Noisy latents, content in the first half of the rows, and what the teachers make of them."""

    noised: Noised
    taught: Tensor


@dataclass(frozen=True)
class Call:
    """One forward: its arguments, which rows of the batch it takes, and which LoRAs act on them."""

    arguments: dict[str, Any]
    rows: slice
    sides: tuple[Sides, ...]


class Problem:
    """What the coefficients are trained on.

    Attributes:
        block: Updates that one pass of the teachers serves.
        samples: Samples of each side in such a pass.

    Args:
        model: The denoiser, frozen.
        branches: The two LoRAs in it.
        teachers: The two prompts' conditions, each under its own LoRA's text encoders.
        students: The same under both LoRAs' text encoders.
        references: Clean latents of content and of style, `[n, …]` each.
        noising: How noise is drawn.
        batch: Samples of each side per update.
        norm: How predictions are compared.
    """

    def __init__(
        self,
        model: nn.Module,
        branches: Branches,
        *,
        teachers: Sequence[Condition],
        students: Sequence[Condition],
        references: References,
        noising: Noising,
        batch: int = 1,
        norm: Norm = "paper",
    ) -> None:
        self.model, self.branches, self.references = model, branches, references
        self._sample, self._clock = teachers[0].sample, teachers[0].clock
        self._noising, self._batch = noising, batch
        self._norm: Norm = norm
        self._ahead = max(1, AHEAD // batch)
        self.block, self.samples = self._ahead * USES, self._ahead * batch
        self._teachers = _calls(teachers, (CONTENT, STYLE), batch * self._ahead)
        self._students = _calls(students, (BOTH, BOTH), batch)
        self._prepared: tuple[int, int] | None = None
        self._lessons: list[Lesson] = []
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def lesson(self, seed: int, update: int) -> Lesson:
        """What an update learns from, the same whenever and wherever it is done.

        Lessons come in blocks that the teachers prepare in one pass and that are gone through
        twice: a teacher's prediction depends on no coefficient, so it stays right.
        """
        block, place = divmod(update, self.block)
        if self._prepared != (seed, block):
            first = update - place
            self._lessons = self._prepare([self.draw(seed, first + i) for i in range(self._ahead)])
            self._prepared = (seed, block)
        return self._lessons[place % self._ahead]

    def draw(self, seed: int, update: int) -> Noised:
        """The noisy latents of an update's lesson."""
        block, place = divmod(update, self.block)
        index = block * self._ahead + place % self._ahead
        generator = torch.Generator("cpu").manual_seed((seed * 1_000_003 + index) % 2**63)
        clean = [
            latents[torch.randint(len(latents), (self._batch,), generator=generator)]
            for latents in self.references
        ]
        return self._noising(torch.cat(clean), generator)

    def _prepare(self, draws: Sequence[Noised]) -> list[Lesson]:
        """Content rows under the content LoRA, style rows under the style LoRA."""
        columns = (torch.stack(parts) for parts in zip(*draws, strict=True))
        # [draws, sides · batch, …] → [sides · draws · batch, …], and back.
        shape = (len(draws), 2, self._batch)
        together = Noised(
            *(x.unflatten(1, shape[1:]).transpose(0, 1).flatten(0, 2) for x in columns)
        )
        advice = "Give another resolution, or use another base model"
        with torch.no_grad(), blame("cannot call the denoiser", where="training", advice=advice):
            taught = torch.cat([self._predict(call, together) for call in self._teachers])
        apart = taught.unflatten(0, (2, len(draws), self._batch)).transpose(0, 1).flatten(1, 2)
        return [Lesson(draw, rows) for draw, rows in zip(draws, apart, strict=True)]

    def losses(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The first two terms of eq. 3; scalars with gradients.

        To be called, and differentiated, inside `branches.acting(BOTH, zipped=True)`: gradient
        checkpointing calls the layers once more.
        """
        calls = self._students
        learnt = torch.cat([self._predict(call, lesson.noised, zipped=True) for call in calls])
        sides = zip(learnt.chunk(2), lesson.taught.chunk(2), strict=True)
        content, style = (distance(student, teacher, self._norm) for student, teacher in sides)
        return content, style

    def _predict(self, call: Call, noised: Noised, *, zipped: bool = False) -> Tensor:
        latents = noised.latents[call.rows].to(self._device, self._dtype)
        times = noised.timesteps[call.rows]
        if times.is_floating_point():
            times = (times * self._clock).float()
        with self.branches.acting(*call.sides, zipped=zipped):
            return self.model(
                **{self._sample: latents},
                timestep=times.to(self._device),
                **call.arguments,
                return_dict=False,
            )[0]


def _calls(conditions: Sequence[Condition], sides: Sequence[Sides], rows: int) -> list[Call]:
    """One call for `rows` samples of each side; two where their prompts cannot share one."""
    together = joined(list(conditions), rows)
    if together is not None:
        same = len(set(sides)) == 1
        return [Call(together, slice(0, 2 * rows), tuple(sides[:1] if same else sides))]
    found: list[Call] = []
    for i, (condition, side) in enumerate(zip(conditions, sides, strict=True)):
        alone = joined([condition], rows)
        if alone is None:
            raise ValueError("a condition can always be repeated")
        found.append(Call(alone, slice(i * rows, (i + 1) * rows), (side,)))
    return found
