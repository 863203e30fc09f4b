"""Random selection, an ablation of K-LoRA (arXiv 2502.18461): dice instead of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ..lora.pairs import Pair
from ..runtime.plan import CONTENT, STYLE, Plan, Rule, Table
from .method import BOTH, Context, Fused
from .values import store, whole

_STYLE_SHARE = 2 / 3


@dataclass(frozen=True)
class Params:
    """What is drawn.

    Attributes:
        seed: Another seed, another plan.
        bins: Into how many equal parts progress is cut; one draw per layer and part.
    """

    seed: int = 0
    bins: int = 50

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is not a whole number or out of range.
        """
        store(
            self,
            seed=whole("seed", self.seed, -(2**63), 2**63 - 1),
            bins=whole("bins", self.bins, 1, 1000),
        )


class RandomSelection:
    """Style with probability 2/3, content with 1/3."""

    name = "random"
    summary = "content with probability 1/3, style with 2/3, drawn per layer and part of progress"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Draw a table per layer, from seed and layer name alone: the same in every process."""
        rules = tuple(_draw(f"{params.seed} {p.name}", params.bins) if p.contested else BOTH
                      for p in pairs)  # fmt: skip
        return Fused(Plan(rules))


def _draw(seed: str, bins: int) -> Rule:
    dice = Random(seed)  # hashes text by SHA-512, not by the process's own hash
    return Table(tuple(STYLE if dice.random() < _STYLE_SHARE else CONTENT for _ in range(bins)))


METHOD = RandomSelection()
