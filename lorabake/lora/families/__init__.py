"""Base model families. A new one is a file here and a line in `MEMBERS`."""

from __future__ import annotations

from difflib import get_close_matches

from ...errors import LoraFileError, listed
from . import flux, flux2, generic, qwen, sd2, sd3, sd15, sdxl, wan, wan22, zimage
from .evidence import Evidence
from .family import Family, Fit

__all__ = ["MEMBERS", "Evidence", "Family", "Fit", "get", "names", "recognise"]

# Where two fit equally well, the first is taken and the other stays possible.
MEMBERS = (
    sd15.FAMILY, sd2.FAMILY, sdxl.FAMILY, flux.FAMILY, sd3.FAMILY, flux2.FAMILY, qwen.FAMILY,
    zimage.FAMILY, wan.FAMILY, wan22.FAMILY, generic.FAMILY,
)  # fmt: skip


def names() -> list[str]:
    """The names that `get` knows."""
    return [family.name for family in MEMBERS]


def get(name: str) -> Family:
    """The family of this name.

    Raises:
        LoraFileError: There is none.
    """
    for family in MEMBERS:
        if family.name == name:
            return family
    near = get_close_matches(name, names(), n=1)
    raise LoraFileError(
        f"there is no base model family {name!r}"
        + (f" (did you mean {near[0]!r}?)" if near else ""),
        advice=f"Choose one of {', '.join(names())}",
    )


def recognise(evidence: Evidence, where: str) -> tuple[Family, frozenset[str]]:
    """The family that a LoRA fits best, and others that what it shows does not rule out.

    What its layers prove counts most, then what its file states, then what its layers suggest.

    Raises:
        LoraFileError: No family has all of its layers.
    """
    fits = {
        family: family.fit(evidence) if all(map(family.owns, evidence.layers)) else Fit.NO
        for family in MEMBERS
    }
    best = max(fits, key=lambda family: fits[family])
    if fits[best] is Fit.NO or (best is generic.FAMILY and _nearly(evidence)):
        raise LoraFileError(
            "its layers are of no base model family that lorabake knows (it was taken for a LoRA "
            f"in the style of {evidence.dialect}): {_strangers(evidence)}",
            where=where,
            advice="Check that it is a whole LoRA for an image model; --family generic takes "
            "layers of any denoiser by their diffusers names",
        )
    if fits[best] is Fit.SURE:
        return best, frozenset()
    possible = [family for family, fit in fits.items() if fit is not Fit.NO]
    for text in evidence.stated:
        named = [f for f in MEMBERS if f.alias is not None and f.alias.search(text)]
        if len(named) == 1 and named[0] in possible:
            return named[0], frozenset()
    return best, frozenset(family.name for family in possible if family is not best)


_MOST = 0.9
"""Share of the layers; with that many the rest are misspelt rather than of another model."""


def _nearly(evidence: Evidence) -> bool:
    """Whether one family has nearly all of the layers, so that the others look like a mistake."""
    return any(
        sum(map(family.owns, evidence.layers)) >= _MOST * len(evidence.layers)
        and family.fit(evidence) is not Fit.NO
        for family in MEMBERS
        if family is not generic.FAMILY
    )


def _strangers(evidence: Evidence) -> str:
    """The layers that the likeliest family lacks; all of them if its fit was the obstacle."""
    named = [family for family in MEMBERS if family is not generic.FAMILY]
    lacking = [[n for n in evidence.layers if not family.owns(n)] for family in named]
    fewest = min(lacking, key=len)
    return listed([str(name) for name in fewest or evidence.layers], 3)
