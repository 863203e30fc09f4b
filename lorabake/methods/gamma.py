"""Gamma: how much larger the content LoRA is than the style LoRA (K-LoRA, arXiv 2502.18461)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

from ..errors import PairError, RecipeError
from .values import positive

Sizes = Sequence[tuple[float, float]]
"""Size of content and style per layer, such as Σ|ΔW|; not negative."""

Formula = Callable[[Sizes], float]


def checked(value: object, formulas: Mapping[str, Formula]) -> str | float:
    """The option: the name of a formula, `none`, or a number greater than 0.

    Raises:
        RecipeError: It is none of these.
    """
    if isinstance(value, str):
        if value in {*formulas, "none"}:
            return value
        raise RecipeError(
            f"'{value}' is not possible",
            where="gamma",
            advice=f"Choose from {', '.join(formulas)}, none, or give a number greater than 0",
        )
    return positive("gamma", value)


def refuse_boundless(sizes: Sizes) -> None:
    """Refuse sizes that have no finite sum.

    Raises:
        PairError: Names the LoRA whose they are.
    """
    for role, side in zip(("content", "style"), zip(*sizes, strict=True), strict=True):
        if not isfinite(sum(side)):
            raise PairError(
                f"the {role} LoRA's weights are too large to be summed",
                advice="Lower its strength, or check that its training did not diverge",
            )


def gamma(option: str | float, formulas: Mapping[str, Formula], sizes: Sizes) -> float:
    """Gamma as a checked option has it, over the layers where content or style is chosen.

    Raises:
        PairError: One LoRA changes nothing in them, or nothing where the other one does, so that
            there is no ratio.
    """
    if not isinstance(option, str):
        return option
    if option == "none":
        return 1.0
    for role, total in zip(("content", "style"), map(sum, zip(*sizes, strict=True)), strict=True):
        if total <= 0:
            raise PairError(
                f"the {role} LoRA changes nothing in the layers that both have",
                where="gamma",
                advice="Check that its training and its strength are not zero, or set gamma=none",
            )
    return formulas[option](sizes)


def total_ratio(sizes: Sizes) -> float:
    """Gamma = Σ_l c_l / Σ_l s_l of the layers' sizes; with Σ|ΔW| for size it is eq. 9."""
    return sum(c for c, _ in sizes) / sum(s for _, s in sizes)


def trimmed_mean(sizes: Sizes) -> float:
    """Mean over layers of c_l / s_l, again without those not below three times the mean.

    So does the authors' released code. Layers where the style changes nothing have no ratio and
    are left out.

    Raises:
        PairError: The content changes nothing in the others.
    """
    ratios = [c / s for c, s in sizes if s > 0]
    limit = 3 * sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < limit]
    if not kept:
        raise PairError(
            "the content LoRA changes nothing in the layers that the style LoRA changes",
            where="gamma",
            advice="Set gamma=none, or a number",
        )
    return sum(kept) / len(kept)
