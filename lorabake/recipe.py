"""Recipes: a method and its parameters, from a preset (`schedules/*.toml`) and single settings."""

from __future__ import annotations

import tomllib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args

from . import methods
from .errors import RecipeError
from .methods.values import one_of, shown
from .runtime.plan import Half

__all__ = ["Recipe", "parse_setting", "presets", "resolve"]

_DEFAULT = "klora"
_HALF = "half"


@dataclass(frozen=True)
class _Preset:
    """One file of `schedules/`, or one of the user's."""

    name: str
    method: str
    description: str
    reference: str
    params: Mapping[str, object]


@dataclass(frozen=True)
class Recipe:
    """What to do.

    Attributes:
        name: The preset's name; the method's where there was no preset.
        method: The method's name.
        params: The method's own parameters, checked.
        half: In which half of guidance the LoRAs act, a parameter of every method.
    """

    name: str
    method: str
    params: Any
    half: Half = "both"

    @property
    def params_dict(self) -> dict[str, Any]:
        """All parameters by name, defaults included; JSON values only.

        Of a folder only the name is told: a bundle is for others, paths are not.
        """
        values = cast("dict[str, Any]", vars(self.params))
        return {
            _public(field.name): _told(values[field.name], field.metadata)
            for field in fields(self.params)
        }

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files and folders that the parameters name."""
        named = [field.name for field in fields(self.params) if "path" in field.metadata]
        return tuple(Path(value) for name in named if (value := getattr(self.params, name)))


def _told(value: Any, metadata: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as the method has
    """A parameter as a bundle tells it; one that may be an id says itself what it is called."""
    if "path" not in metadata:
        return value
    return metadata["recorded"](value) if "recorded" in metadata else Path(value).name


def presets() -> tuple[tuple[str, str, str], ...]:
    """Name, method and description of the presets that come with lorabake, by name."""
    found = (_read(path) for path in _shipped().values())
    return tuple((preset.name, preset.method, preset.description) for preset in found)


def resolve(
    method: str | None = None,
    preset: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Recipe:
    """Find the method and check its parameters.

    Args:
        method: Name of a method; from the preset if None, K-LoRA if there is no preset either.
        preset: Name of a preset, or path of a `.toml` file.
        overrides: Parameters that take precedence over the preset's.

    Raises:
        RecipeError: An unknown name (the message has the nearest one), a value out of range, a
            broken preset file, or a preset that is for another method.
    """
    overrides = overrides or {}
    if preset is None:
        asked = _DEFAULT if method is None else method
        return Recipe(asked, asked, *_checked(asked, overrides))
    chosen = _find(preset)
    with _named(preset):
        _checked(chosen.method, chosen.params)
    if method is not None and methods.get(method) is not methods.get(chosen.method):
        raise RecipeError(
            f"is for the method {chosen.method}, but the method asked for is {method}",
            where=f"preset {preset}",
            advice="Leave one of the two out",
        )
    return Recipe(
        chosen.name, chosen.method, *_checked(chosen.method, {**chosen.params, **overrides})
    )


def _checked(method: str, values: Mapping[str, object]) -> tuple[Any, Half]:
    """The method's parameters, and `half`; refuses unknown names, values are checked by class."""
    params = methods.get(method).params
    known = {_public(field.name): field.name for field in fields(params)}
    for key in values:
        if _public(key) not in known and key != _HALF:
            _unknown(f"the method {method} has no parameter", key, [*known, _HALF])
    given = {known[_public(key)]: value for key, value in values.items() if key != _HALF}
    half = one_of(_HALF, values.get(_HALF, "both"), get_args(Half))
    return params(**given), cast("Half", half)


def _public(name: str) -> str:
    """A parameter's name outside of Python, where `lambda` is a word like any other."""
    return name.removesuffix("_")


@contextmanager
def _named(preset: str) -> Generator[None]:
    """Say of an error inside which preset it is in."""
    try:
        yield
    except RecipeError as error:
        where = ": ".join(part for part in (f"preset {preset}", error.where) if part)
        raise RecipeError(error.what, where=where, advice=error.advice) from error


def parse_setting(text: str) -> tuple[str, object]:
    """`key=value` as the command line has it: TOML values, and words without quotes.

    Raises:
        RecipeError: There is no key or no equals sign.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals or not value:
        raise RecipeError(
            f"'{text}' is not a setting", where="--set", advice="Write key=value, as in alpha=1.5"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):  # a word, or what Python will not read as a number
        return key, value
    return key, parsed["value"] if len(parsed) == 1 else value


def _shipped() -> dict[str, Path]:
    """Files of the presets by name, sorted."""
    # Inside the package in a wheel, beside it in a checkout.
    inside = Path(__file__).parent / "schedules"
    folder = inside if inside.is_dir() else inside.parent.parent / "schedules"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def _find(preset: str) -> _Preset:
    if preset.endswith(".toml"):
        return _read(Path(preset))
    known = _shipped()
    if preset not in known:
        _unknown("there is no preset", preset, known, "preset")
    return _read(known[preset])


def _read(path: Path) -> _Preset:
    """One preset file, strictly: nothing missing, nothing unknown, everything of its type."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"cannot be read ({error.strerror})", where=str(path), advice="Check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"is not TOML: {error}", where=str(path)) from error
    types = {"method": str, "description": str, "reference": str, "params": dict}
    for key, value in content.items():
        if key not in types:
            _unknown("a preset has no key", key, types, str(path))
        if not isinstance(value, types[key]):
            kind = "a table" if types[key] is dict else "text"
            raise RecipeError(f"{key} must be {kind}, not {shown(value)}", where=str(path))
    if "method" not in content:
        raise RecipeError(
            "has no method", where=str(path), advice='Add a line such as method = "klora"'
        )
    return _Preset(
        path.stem,
        content["method"],
        content.get("description", ""),
        content.get("reference", ""),
        content.get("params", {}),
    )


def _unknown(what: str, name: str, known: Iterable[str], where: str = "") -> None:
    options = sorted(known)
    near = get_close_matches(name, options, 1, 0.5)
    raise RecipeError(
        f"{what} '{name}'",
        where=where,
        advice=f"Did you mean '{near[0]}'?" if near else f"Choose from {', '.join(options)}",
    )
