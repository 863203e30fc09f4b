"""Fixed selection, an ablation of K-LoRA (arXiv 2502.18461): the scale alone decides."""

from __future__ import annotations

from collections.abc import Sequence

from ..lora.pairs import Pair
from ..runtime.plan import Plan, Threshold
from .method import BOTH, Context, Fused
from .values import ScaleParams


class FixedSelection:
    """Content while S(p) ≤ 1, style after it, in all layers alike.

    With alpha = 1.5 and beta = 0.5 the content has the first third of the steps.
    """

    name = "fixed"
    summary = "K-LoRA's scale alone: content early, style late, in all layers alike"
    params = ScaleParams

    def fuse(self, pairs: Sequence[Pair], params: ScaleParams, context: Context) -> Fused:
        """Give all layers the same scores, so that S alone is compared with 1."""
        rules = tuple(Threshold((1.0, 1.0)) if pair.contested else BOTH for pair in pairs)
        return Fused(Plan(rules, params.scale(gamma=1.0)))


METHOD = FixedSelection()
