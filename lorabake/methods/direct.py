"""Direct merge: both LoRAs, everywhere and always, each with one weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..lora.pairs import Pair
from ..runtime.plan import Plan
from .method import BOTH, Context, Fused
from .values import number, store


@dataclass(frozen=True)
class Params:
    """W = W0 + w_c·ΔW_c + w_s·ΔW_s.

    Attributes:
        w_c: Weight of the content LoRA.
        w_s: Weight of the style LoRA.
    """

    w_c: float = 1.0
    w_s: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: A weight is not a finite number.
        """
        store(self, w_c=number("w_c", self.w_c), w_s=number("w_s", self.w_s))


class Direct:
    """The weights go into the stored factors, so that every loader applies them."""

    name = "direct"
    summary = "weighted sum of both LoRAs"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Decide nothing: there is no numeric work."""
        return Fused(Plan((BOTH,) * len(pairs)), strengths=(params.w_c, params.w_s))


METHOD = Direct()
