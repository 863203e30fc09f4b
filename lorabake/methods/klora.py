"""K-LoRA (arXiv 2502.18461): the LoRA whose largest entries weigh more has the layer.

Per layer and progress p: content if S_c ≥ S_s·gamma·S(p), else style (eqs. 1–10). Only S depends
on p, so two scores per layer are the whole plan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..errors import RecipeError
from ..lora.pairs import Pair
from ..lora.parallel import each
from ..lora.topk import Magnitude, magnitude
from ..lora.types import LowRank
from .gamma import checked, gamma, refuse_boundless, total_ratio, trimmed_mean
from .method import Context, Fused, compared, contested
from .values import ScaleParams, store, whole

_FORMULAS = {"sum": total_ratio, "trimmed-mean": trimmed_mean}


@dataclass(frozen=True)
class Params(ScaleParams):
    """K-LoRA's parameters; the defaults are the paper's.

    Attributes:
        gamma: `sum` (eq. 9), `trimmed-mean` (the released code's), `none` (1) or a number.
        k: How many entries count: a number, or a multiple of r_c·r_s such as `2x`; never more
            than the layer has.
    """

    gamma: str | float = "sum"
    k: int | str = "1x"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        super().__post_init__()
        store(self, gamma=checked(self.gamma, _FORMULAS), k=_checked_k(self.k))

    def count(self, pair: Pair) -> int:
        """K of this layer (eq. 2: K = r_c·r_s); halves are rounded to even, 1 is the least."""
        if isinstance(self.k, int):
            return self.k
        content, style = pair.ranks
        return max(1, round(Fraction(self.k.removesuffix("x")) * content * style))


def _checked_k(value: object) -> int | str:
    if isinstance(value, str):
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?x", value, re.ASCII) and Fraction(value[:-1]) > 0:
            return value
        raise RecipeError(
            f"'{value}' is not possible",
            where="k",
            advice="Give a whole number such as 4096, or a multiple of r_c·r_s such as 2x or 0.5x",
        )
    return whole("k", value, 1, 2**63 - 1)


class KLora:
    """Scores are computed where content or style is chosen; gamma is taken over these layers."""

    name = "klora"
    summary = "per layer and step the LoRA whose largest entries weigh more"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Score the layers and derive gamma.

        Raises:
            PairError: The LoRAs share no layer of the denoiser, one of them has values beyond
                all bounds, or gamma has no value because one of them changes nothing there.
        """
        shared = contested(pairs)
        sides = [(side, params.count(p)) for p in shared for side in (p.content, p.style) if side]

        def score(side: tuple[LowRank, int]) -> Magnitude:
            return magnitude(*side, context.device)

        found = each(score, sides, context.device, context.stage("fusing"))
        scores = list(zip(found[::2], found[1::2], strict=True))
        totals = [(c.total, s.total) for c, s in scores]
        refuse_boundless(totals)
        ratio = gamma(params.gamma, _FORMULAS, totals)
        return compared(pairs, [(c.top, s.top) for c, s in scores], params.scale(ratio))


METHOD = KLora()
