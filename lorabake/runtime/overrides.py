"""Values given at load time instead of the bundle's, checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, get_args

from .errors import OverrideError, listed
from .manifest import MAX_GATE, Manifest
from .plan import Pattern, Scale, Threshold

SCALE = ("pattern", "alpha", "beta", "gamma")
STRENGTHS = ("content_strength", "style_strength")


def scale_with(manifest: Manifest, overrides: Mapping[str, object]) -> Scale | None:
    """The manifest's scale with the overrides in it.

    Raises:
        OverrideError: One is unknown, out of range, or the plan has nothing that it could change.
    """
    for name in overrides:
        if name not in SCALE:
            raise _unknown(name)
    scale = manifest.scale
    if not overrides:
        return scale
    if scale is None or not any(isinstance(layer.rule, Threshold) for layer in manifest.layers):
        raise OverrideError(
            f"a bundle of the method {manifest.method} has no scale to change",
            where=next(iter(overrides)),
            advice=f"Only {listed([*STRENGTHS])} can be given for it",
        )
    changed = replace(
        scale,
        pattern=chosen("pattern", overrides.get("pattern", scale.pattern), get_args(Pattern)),
        **{name: number(name, value) for name, value in overrides.items() if name != "pattern"},
    )
    if changed.gamma <= 0:
        raise _range("gamma", changed.gamma, "a number above 0")
    if changed.pattern == "modulo" and changed.alpha <= 0:
        raise _range("alpha", changed.alpha, "a number above 0 with the pattern modulo")
    return changed


def number(name: str, value: object) -> float:
    """A finite number, or an `OverrideError` that names it."""
    try:
        if not isinstance(value, bool | str) and math.isfinite(found := float(value)):  # type: ignore[arg-type] - what float() refuses is refused below
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    raise _range(name, value, "a finite number")


def strength(name: str, value: object) -> float:
    """A factor on a source, or an `OverrideError` that names it."""
    if abs(found := number(name, value)) > MAX_GATE:
        raise _range(name, value, f"a number from -{MAX_GATE} to {MAX_GATE}")
    return found


def chosen(name: str, value: object, among: tuple[str, ...]) -> Any:  # noqa: ANN401 - a Literal
    """One of a few words, or an `OverrideError` that lists them."""
    if value in among:
        return value
    near = get_close_matches(str(value), among, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise OverrideError(
        f"there is no {name} {value!r}",
        where=name,
        advice=f"{hint}Choose one of {', '.join(among)}",
    )


def _range(name: str, value: object, must: str) -> OverrideError:
    return OverrideError(f"{value!r} is out of range", where=name, advice=f"Give {must}")


def _unknown(name: str) -> OverrideError:
    known = (*SCALE, *STRENGTHS)
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    return OverrideError(
        "there is no such override", where=name, advice=f"{hint}Known are {', '.join(known)}"
    )
