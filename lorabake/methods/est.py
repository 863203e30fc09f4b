"""EST-LoRA (arXiv 2508.02165): the LoRA whose update has more energy has the layer.

Per layer and progress p, as in the authors' code: content if ‖ΔW_c‖² ≥ ‖ΔW_s‖²·gamma·S(p), else
style, with squared Frobenius norms, S(p) = alpha·p + beta, and the style discrepancy for beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..lora.energy import energy
from ..lora.pairs import Pair
from ..lora.parallel import each
from ..lora.topk import magnitude
from ..lora.types import LowRank
from .gamma import checked, gamma, refuse_boundless, total_ratio, trimmed_mean
from .method import Context, Fused, compared, contested
from .values import ScaleParams, store

_FORMULAS = {"trimmed-mean": trimmed_mean, "energy": total_ratio}


@dataclass(frozen=True)
class Params(ScaleParams):
    """EST-LoRA's parameters, those of the authors' code but for beta.

    There beta is measured before: each LoRA alone paints the same prompt from the same seed, and
    beta is 1 − the cosine of the two pictures' DINO (ViT-S/16) embeddings. The more the pictures
    differ, the earlier the style comes. Without a measurement it is K-LoRA's 0.5 here.

    Attributes:
        gamma: `trimmed-mean` of Σ|ΔW_c| / Σ|ΔW_s| (the authors' code, after K-LoRA's), `energy`
            (Σ‖ΔW_c‖² / Σ‖ΔW_s‖² over the layers, our own: then the strength of a LoRA as a whole
            does not matter), `none` (1) or a number.
    """

    gamma: str | float = "trimmed-mean"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        super().__post_init__()
        store(self, gamma=checked(self.gamma, _FORMULAS))


class Est:
    """Energies are computed where content or style is chosen; gamma is over these layers."""

    name = "est"
    summary = "per layer and step the LoRA whose update has more energy"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Take the layers' energies and derive gamma.

        Raises:
            PairError: The LoRAs share no layer of the denoiser, one of them has values beyond
                all bounds, or gamma has no value because one of them changes nothing there.
        """
        shared = contested(pairs)
        sides = [side for pair in shared for side in pair.loras if side]
        sums = params.gamma == "trimmed-mean"

        def measure(side: LowRank) -> tuple[float, float]:
            total = magnitude(side, prod(side.shape), context.device).total if sums else 0.0
            return energy(side, context.device), total

        found = each(measure, sides, context.device, context.stage("fusing"))
        energies, totals = (
            list(zip(x[::2], x[1::2], strict=True)) for x in zip(*found, strict=True)
        )
        refuse_boundless(energies)
        refuse_boundless(totals)
        ratio = gamma(params.gamma, _FORMULAS, totals if sums else energies)
        return compared(pairs, energies, params.scale(ratio))


METHOD = Est()
