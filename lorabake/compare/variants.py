"""What is compared: methods, presets and bundles, each perhaps with parameters of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from .. import methods, recipe
from ..bundle import load
from ..errors import RecipeError, listed
from ..methods.trained import TrainedParams
from ..runtime.bundle import Bundle
from ..runtime.overrides import GUIDANCE, LIVE, SCALE, STRENGTHS

ANCHORS = ("base", "content only", "style only", "direct merge")
"""What is painted beside the variants always; all differences are to the last one."""
DIRECT = ANCHORS[-1]

_EVERY = "half"
"""A parameter of every method, and of every bundle at load time."""
_ANYWHERE = (*STRENGTHS, "mode", _EVERY)
"""Load-time parameters that any bundle takes."""
_SPEC = re.compile(r"(.*?)(?::((?:\w+=).*))?", re.DOTALL)
_NEXT = re.compile(r",(?=\w+=)")


@dataclass(frozen=True)
class Variant:
    """One column of the comparison.

    Attributes:
        label: What it is called; no two alike.
        method: Name of its method; None for a bundle that is there already.
        preset: Preset by name, or a `.toml` file.
        bundle: A bundle that is there already, a file or hub id.
        params: Parameters of the method.
        overrides: What `Bundle.attach` gets.
        own: Names of the parameters that it was given for itself.
    """

    label: str
    method: str | None = None
    preset: str | None = None
    bundle: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    own: frozenset[str] = frozenset()

    def takes(self, name: str) -> bool:
        """Whether a parameter of this name means something for it, at bake or at load time."""
        if self.bundle is None:
            return name in _params(str(self.method)) or name in _ANYWHERE
        return name in (*_ANYWHERE, *_changeable(load(self.bundle)))

    def having(self, name: str, value: object) -> Variant:
        """The same with a parameter, which is the method's where it has such a one."""
        if self.bundle is None and name in _params(str(self.method)):
            return replace(self, params={**self.params, name: value})
        return replace(self, overrides={**self.overrides, name: value})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "label": self.label, "method": self.method, "preset": self.preset,
            "bundle": self.bundle, "params": dict(self.params), "overrides": dict(self.overrides),
        }  # fmt: skip


def variants(
    named: Sequence[str],
    presets: Sequence[str],
    bundles: Sequence[str],
    *,
    given: Mapping[str, str],
    settings: Sequence[str] = (),
    grid: Sequence[str] = (),
) -> tuple[Variant, ...]:
    """The variants of a comparison, without the anchors.

    Args:
        named: Methods, `klora` or `klora:alpha=1.4,beta=0.3`.
        presets: Presets, likewise.
        bundles: Files or hub ids, likewise with load-time parameters.
        given: Prompts and images of the LoRAs and names of encoders, by the parameters that the
            methods have for them.
        settings: `key=value`, for each variant that has such a parameter.
        grid: `key=v1,v2,…`: each variant that has such a parameter, once for each value.

    Returns:
        As given; every method that needs nothing more than what is given if nothing is named.

    Raises:
        RecipeError: A name, parameter or value is unknown or out of range, a method lacks
            something, or two variants are the same.
        BundleError: A bundle cannot be read.
    """
    found = [
        *(_method(text) for text in named),
        *(_preset(text) for text in presets),
        *(_bundle(text) for text in bundles),
    ]
    explicit = bool(found)
    if not explicit:
        found = [Variant(name, method=name) for name in methods.names() if name != "direct"]
    found = [_informed(variant, given) for variant in found]
    found = _settled(found, settings)
    found = _spread(found, grid)
    lacks = [_lack(variant) for variant in found]
    if explicit:
        for lack in filter(None, lacks):
            raise lack
    found = [x for x, lack in zip(found, lacks, strict=True) if lack is None]
    _check_labels(found)
    return tuple(found)


def _method(text: str) -> Variant:
    name, own = parse(text, "--method")
    methods.get(name)
    return _with_own(Variant(name, method=name), own)


def _preset(text: str) -> Variant:
    name, own = parse(text, "--preset")
    method = recipe.resolve(preset=name).method
    label = Path(name).stem if name.endswith(".toml") else name
    return _with_own(Variant(label, method=method, preset=name), own)


def _bundle(text: str) -> Variant:
    name, own = parse(text, "--bundle")
    return _with_own(Variant(Path(name).stem, bundle=name), own)


def parse(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """`NAME:key=value,key=value` as name and parameters.

    Raises:
        RecipeError: There is no name, or a key without a value.
    """
    match = _SPEC.fullmatch(text)
    name, rest = match.groups() if match else ("", None)
    if not name.strip():
        raise RecipeError(
            f"'{text}' names nothing", where=where, advice="Write NAME or NAME:key=value,key=value"
        )
    return name.strip(), dict(recipe.parse_setting(x) for x in _NEXT.split(rest)) if rest else {}


def _with_own(variant: Variant, own: Mapping[str, Any]) -> Variant:
    found = variant
    for name, value in own.items():
        if not variant.takes(name):
            _refuse(variant, name)
        found = found.having(name, value)
    label = " ".join([variant.label, *(f"{k}={_text(v)}" for k, v in own.items())])
    return replace(found, label=label, own=frozenset(own))


def _refuse(variant: Variant, name: str) -> None:
    """Say that a variant has no such parameter.

    Raises:
        RecipeError: Always; a method's own check says what is meant if it is near.
    """
    if variant.bundle is None:
        recipe.resolve(variant.method, None, {name: 0})
    raise RecipeError(
        f"{variant.label} has no parameter '{name}'", where="parameters",
        advice=f"At load time any bundle takes {listed([*_ANYWHERE], 9)}",
    )  # fmt: skip


def _informed(variant: Variant, given: Mapping[str, str]) -> Variant:
    """With prompts, images and encoders where its method has parameters for them."""
    if variant.bundle is not None:
        return variant
    known = _params(str(variant.method))
    told = {k: v for k, v in given.items() if k in known and k not in variant.params}
    return replace(variant, params={**told, **variant.params})


def _settled(found: Sequence[Variant], settings: Sequence[str]) -> list[Variant]:
    settled = list(found)
    for name, value in map(recipe.parse_setting, settings):
        takers = [x for x in settled if x.takes(name) and name not in x.own]
        _check_taken(name, takers, "--set")
        settled = [x.having(name, value) if x in takers else x for x in settled]
    return settled


def _spread(found: Sequence[Variant], grid: Sequence[str]) -> list[Variant]:
    axes = [_axis(text) for text in grid]
    for name, _ in axes:
        takers = [x for x in found if x.takes(name) and name not in x.own]
        _check_taken(name, takers, "--grid")
    spread: list[Variant] = []
    for variant in found:
        own = [(n, v) for n, v in axes if variant.takes(n) and n not in variant.own]
        for values in product(*(values for _, values in own)):
            one = variant
            for (name, _), value in zip(own, values, strict=True):
                one = replace(one.having(name, value), label=f"{one.label} {name}={_text(value)}")
            spread.append(one)
    return spread


def _axis(text: str) -> tuple[str, list[object]]:
    name, equals, rest = text.partition("=")
    values = [recipe.parse_setting(f"{name}={value}")[1] for value in split(rest)] if rest else []
    if not equals or not values:
        raise RecipeError(
            f"'{text}' is no axis", where="--grid", advice="Write key=v1,v2, as in alpha=1,1.5,2"
        )
    return name.strip(), values


def split(text: str) -> list[str]:
    """A text at its commas, but not at those inside of brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        quote = "" if c == quote else quote or (c if c in "\"'" else "")
        depth += 0 if quote else (c in "[{") - (c in "]}")
        if c == "," and not (depth or quote):
            parts.append("")
        else:
            parts[-1] += c
    return parts


def _check_taken(name: str, takers: Iterable[Variant], where: str) -> None:
    if not any(takers):
        raise RecipeError(
            f"no variant has a parameter '{name}' that it could change", where=where,
            advice="See the parameters of the methods, or leave it away",
        )  # fmt: skip


def _lack(variant: Variant) -> RecipeError | None:
    """What a variant needs and was not given; None if it can be baked."""
    if variant.bundle is not None:
        return None
    params = recipe.resolve(variant.method, variant.preset, variant.params).params
    try:
        if isinstance(params, TrainedParams):
            params.wanted(str(variant.method))
    except RecipeError as error:
        return error
    return None


def _check_labels(found: Sequence[Variant]) -> None:
    labels = [x.label for x in found]
    for label in labels:
        if labels.count(label) > 1 or label in ANCHORS:
            raise RecipeError(
                f"there are two variants '{label}'", where="variants",
                advice="Leave one away, or give them different parameters or file names",
            )  # fmt: skip


def _params(method: str) -> frozenset[str]:
    """Names of a method's parameters, as users write them."""
    own = (x.name.removesuffix("_") for x in fields(methods.get(method).params))
    return frozenset((*own, _EVERY))


def _changeable(bundle: Bundle) -> tuple[str, ...]:
    """Load-time parameters that a bundle's plan has."""
    manifest = bundle.manifest
    scale = SCALE if manifest.scale is not None else ()
    live = LIVE if manifest.live else ()
    return (*scale, *live, *((*GUIDANCE, "guidance") if manifest.guidance else ()))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
