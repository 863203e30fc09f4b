"""What a recording runs: prompts, seeds and how they are painted, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .methods.values import number, store, text, whole
from .pipelines import encoders


@dataclass(frozen=True)
class Inputs:
    """What is run, checked; see `record`."""

    prompts: tuple[str, ...]
    seeds: int
    first_seed: int
    steps: int
    bins: int | None
    guidance_scale: float | None
    width: int | None
    height: int | None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        _check_prompts(self.prompts)
        whole("seeds", self.seeds, 1, 10_000)
        whole("first_seed", self.first_seed, 0, 2**63 - self.seeds)
        whole("steps", self.steps, 1, 10_000)
        if self.bins is not None:
            whole("bins", self.bins, 1, self.steps)
        if self.guidance_scale is not None:
            store(self, guidance_scale=number("guidance_scale", self.guidance_scale))
        if (self.width is None) != (self.height is None):
            raise RecipeError("one of width and height is missing", advice="Give both, or neither")
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels is not None:
                whole(name, pixels, 8, 100_000)

    @property
    def each_seed(self) -> range:
        """One per image of a prompt."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def count(self) -> int:
        """Of all images."""
        return len(self.prompts) * self.seeds

    @property
    def options(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        names = ("guidance_scale", "width", "height")
        return {"num_inference_steps": self.steps} | {n: getattr(self, n) for n in names}

    def params(self, bins: int, base: str | Path) -> dict[str, Any]:
        """As a manifest has them: with the number of bins, and the base model by its name."""
        known = asdict(self) | {"prompts": [*self.prompts]}
        return known | {"bins": bins, "base": encoders.recorded(base)}


def several(prompts: object) -> tuple[str, ...]:
    """One text, or several.

    Raises:
        RecipeError: It is neither.
    """
    if isinstance(prompts, str):
        return (prompts,)
    if not isinstance(prompts, Iterable):
        advice = "Give one text, or a list of texts"
        raise RecipeError(f"{prompts!r} is no text", where="prompts", advice=advice)
    return tuple(prompts)


def _check_prompts(prompts: Sequence[str]) -> None:
    where, advice = "prompts", "Give texts with the trigger words in them"
    if not prompts:
        raise RecipeError("there are none", where=where, advice=advice)
    for prompt in prompts:
        if not text(where, prompt).strip():
            raise RecipeError("one is empty", where=where, advice=advice)
        # What is no UTF-8 comes as lone surrogates, which no tokeniser takes.
        if prompt != prompt.encode(errors="replace").decode():
            raise RecipeError("one is not UTF-8 text", where=where, advice=advice)
    if len({*prompts}) < len(prompts):
        raise RecipeError("one is given twice", where=where, advice="Raise the number of seeds")
