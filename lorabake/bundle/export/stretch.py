"""The plain LoRAs that a bundle becomes: one, or one for each stretch of a timeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ...errors import BundleError, RecipeError
from ...runtime import Bundle
from ...runtime.manifest import Layer
from ...runtime.plan import CONTENT, STYLE, gates
from .shares import END, START, Shares, shares, shares_of_steps
from .static import Static, original, planned
from .wanted import Wanted


@dataclass(frozen=True, eq=False)
class Stretch:
    """One plain LoRA to come: its layers, and the progress that it stands for."""

    start: Fraction
    end: Fraction
    layers: tuple[Static, ...]

    def alike(self, other: Stretch) -> bool:
        """Whether the other has the same layers with the same shares of the same sources."""
        mine, others = (
            [(x.name, x.sources, x.shares) for x in each.layers] for each in (self, other)
        )
        return mine == others


def stretches(bundle: Bundle, wanted: Wanted) -> list[Stretch]:
    """What is to be written, in order of time.

    Raises:
        BundleError: The plan is not known before the features are; there is nothing to write.
        RecipeError: The LoRA that is wanted cannot be had back.
    """
    if wanted.only is not None:
        found = [Stretch(START, END, _alone(bundle, wanted.only))]
    else:
        _refuse_live(bundle)
        found = _planned(bundle, wanted)
    if not all(one.layers for one in found):
        raise BundleError(
            "nothing is applied then, so there would be no layer in the file",
            where=str(bundle.path),
            advice="Check the plan with `lorabake inspect`",
        )
    return found


def _alone(bundle: Bundle, only: str) -> tuple[Static, ...]:
    source = CONTENT if only == "content" else STYLE
    if bundle.manifest.sources[source].strength == 0:
        raise RecipeError(
            f"the {only} LoRA is in the bundle with strength 0, so it cannot be had back",
            where=str(bundle.path),
            advice="Use the file that the bundle was made of",
        )
    found = (original(bundle, layer, source) for layer in bundle.manifest.layers)
    return tuple(one for one in found if one is not None)


def _refuse_live(bundle: Bundle) -> None:
    if bundle.manifest.live:
        raise BundleError(
            f"the method {bundle.manifest.method} chooses live, from features that are not known "
            "yet, so there is no plan to export",
            where=str(bundle.path),
            advice="Make a static bundle of it with `lorabake record` first, or export one of its "
            "LoRAs with --content-only or --style-only",
        )


def _planned(bundle: Bundle, wanted: Wanted) -> list[Stretch]:
    scale = bundle.manifest.scale
    if wanted.at is not None:
        p = wanted.moment
        return [_stretch(bundle, p, p, lambda x: {gates(x.rule, scale, p): END})]
    if wanted.steps is not None:
        count = wanted.steps
        return [_stretch(bundle, START, END, lambda x: shares_of_steps(x.rule, scale, count))]
    parts = wanted.timeline or 1
    found: list[Stretch] = []
    for i in range(parts):
        start, end = Fraction(i, parts), Fraction(i + 1, parts)
        new = _between(bundle, start, end)
        if found and found[-1].alike(new):
            new = Stretch(found.pop().start, end, new.layers)
        found.append(new)
    return found


def _between(bundle: Bundle, start: Fraction, end: Fraction) -> Stretch:
    scale = bundle.manifest.scale
    return _stretch(bundle, start, end, lambda x: shares(x.rule, scale, start, end))


def _stretch(
    bundle: Bundle, start: Fraction, end: Fraction, of: Callable[[Layer], Shares]
) -> Stretch:
    found = (planned(bundle, layer, of(layer)) for layer in bundle.manifest.layers)
    return Stretch(start, end, tuple(one for one in found if one is not None))
