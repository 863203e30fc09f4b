"""LoRA Switch (Multi-LoRA Composition, arXiv 2402.16843): one LoRA at a time, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ..lora.pairs import Pair
from ..runtime.manifest import MAX_BINS
from ..runtime.plan import CONTENT, STYLE, Plan, Table
from .method import BOTH, Context, Fused
from .values import one_of, store, whole

First = Literal["content", "style"]


@dataclass(frozen=True)
class Params:
    """When it is whose turn.

    With another number of denoising steps than `steps` the turns are as long in progress: half
    as many steps, half as many of them per turn.

    Attributes:
        tau: Steps per turn; 5 is the paper's.
        steps: Denoising steps at which a turn is exactly `tau` of them.
        first: Whose turn is first: `content` or `style`. The paper advises the subject.
    """

    tau: int = 5
    steps: int = 50
    first: First = "content"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        store(
            self,
            tau=whole("tau", self.tau, 1, MAX_BINS),
            steps=whole("steps", self.steps, 1, MAX_BINS),
            first=one_of("first", self.first, get_args(First)),
        )


class Switch:
    """All layers take turns alike: at step t from 0 it is LoRA ⌊t / tau⌋ mod 2."""

    name = "switch"
    summary = "one LoRA at a time, the other one after every tau steps"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Write the turns down as one table for all layers: there is no numeric work."""
        turns = (CONTENT, STYLE) if params.first == "content" else (STYLE, CONTENT)
        table = Table(tuple(turns[t // params.tau % 2] for t in range(params.steps)))
        return Fused(Plan(tuple(table if pair.contested else BOTH for pair in pairs)))


METHOD = Switch()
