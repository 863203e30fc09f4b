"""Values given at load time instead of the bundle's, checked before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

from .errors import OverrideError, listed
from .guidance import MAX_EVERY, MAX_FORCE, Guidance, Through
from .manifest import MAX_GATE, Manifest
from .plan import Half, Pattern, Scale, Threshold
from .selection import (
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MIN_TEMPERATURE,
    Criterion,
    Scope,
    Selection,
)

SCALE = ("pattern", "alpha", "beta", "gamma")
LIVE = ("criterion", "temperature", "scope", "tokens")
WEIGHTS = ("w_clip_content", "w_clip_style", "w_dino_style")
GUIDANCE = ("m", "every", "through", *WEIGHTS)
STRENGTHS = ("content_strength", "style_strength")


@dataclass(frozen=True)
class Settings:
    """What a replay runs with: the manifest's values, and the overrides in their place."""

    scale: Scale | None
    selection: Selection | None
    guidance: Guidance | None
    half: Half


def settings(
    manifest: Manifest, overrides: Mapping[str, object], half: object = None, *, guided: bool
) -> Settings:
    """All values of a replay.

    Args:
        manifest: The bundle's.
        overrides: By name.
        half: `both` or `conditional`; None for the manifest's.
        guided: Whether the latents are guided, if the bundle knows by what.

    Raises:
        OverrideError: One is unknown, out of range, or the bundle has nothing that it could change.
    """
    given = {
        names: {name: value for name, value in overrides.items() if name in names}
        for names in (LIVE, GUIDANCE)
    }
    rest = {name: overrides[name] for name in overrides if name not in (*LIVE, *GUIDANCE)}
    guidance = manifest.guidance if guided else None
    return Settings(
        scale_with(manifest, rest),
        _selection_with(manifest, given[LIVE]),
        _guidance_with(manifest, guidance, given[GUIDANCE]),
        manifest.half if half is None else chosen("half", half, get_args(Half)),
    )


def _selection_with(manifest: Manifest, given: Mapping[str, object]) -> Selection | None:
    of = manifest.selection
    if not given:
        return of
    if of is None or not manifest.live:
        raise _nothing(manifest, given, "chooses nothing live")
    found = replace(
        of,
        criterion=chosen("criterion", given.get("criterion", of.criterion), get_args(Criterion)),
        temperature=number("temperature", given.get("temperature", of.temperature)),
        scope=chosen("scope", given.get("scope", of.scope), get_args(Scope)),
        tokens=_whole("tokens", given.get("tokens", of.tokens), 0, MAX_TOKENS),
    )
    if not MIN_TEMPERATURE <= found.temperature <= MAX_TEMPERATURE:
        limits = f"a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        raise _range("temperature", found.temperature, limits)
    return found


def _guidance_with(
    manifest: Manifest, of: Guidance | None, given: Mapping[str, object]
) -> Guidance | None:
    if not given:
        return of
    if of is None:
        raise _nothing(
            manifest,
            given,
            "is replayed without its guidance" if manifest.guidance else "has no guidance",
        )
    first, second, third = (
        _force(name, given.get(name, weight))
        for name, weight in zip(WEIGHTS, of.weights, strict=True)
    )
    return replace(
        of,
        m=_force("m", given.get("m", of.m)),
        every=_whole("every", given.get("every", of.every), 1, MAX_EVERY),
        through=chosen("through", given.get("through", of.through), get_args(Through)),
        weights=(first, second, third),
    )


def _fitting(manifest: Manifest) -> tuple[str, ...]:
    """What can be given for a bundle that has no scale."""
    live = LIVE if manifest.live else ()
    return (*live, *(GUIDANCE if manifest.guidance else ()), *STRENGTHS)


def _nothing(manifest: Manifest, given: Mapping[str, object], why: str) -> OverrideError:
    return OverrideError(
        f"a bundle of the method {manifest.method} {why}, so this changes nothing",
        where=next(iter(given)),
        advice="Leave it away",
    )


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
            advice=f"Leave it away; {listed([*_fitting(manifest)], 20)} can be given for it",
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


def _force(name: str, value: object) -> float:
    if not 0 <= (found := number(name, value)) <= MAX_FORCE:
        raise _range(name, value, f"a number from 0 to {MAX_FORCE}")
    return found


def _whole(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _range(name, value, f"a whole number from {least} to {most}")
    return value


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
    known = (*SCALE, *LIVE, *GUIDANCE, *STRENGTHS)
    near = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]}? " if near else ""
    return OverrideError(
        "there is no such override", where=name, advice=f"{hint}Known are {', '.join(known)}"
    )
