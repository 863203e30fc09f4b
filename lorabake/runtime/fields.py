"""Reading untrusted JSON: every field is there and of its type, or a `BundleError` names it."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from .errors import BundleError

_ADVICE = "The bundle is damaged or was not written by lorabake; make it again"


def refuse(what: str) -> BundleError:
    """The error for a manifest that breaks the format."""
    return BundleError(what, where="manifest", advice=_ADVICE)


def parse(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """JSON without its traps: no NaN, Inf, repeated names, bottomless nesting or lone surrogates.

    Raises:
        BundleError: The text is not such JSON.
    """
    try:
        value = json.loads(
            text, parse_constant=_not_a_number, parse_float=_finite, object_pairs_hook=_unique
        )
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        raise refuse("a string in it is not Unicode text (it has a lone surrogate)") from error
    except (ValueError, RecursionError) as error:
        raise refuse(f"it is not valid JSON ({error})") from error


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _not_a_number(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the name {name!r} occurs twice in one object")
    return found


class Fields:
    """A JSON object whose fields are asked for by name and type.

    Args:
        value: What stands where the object should be.
        where: Its path in the manifest, for messages.
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise refuse(f"{where or 'the manifest'} must be an object")
        self._values: dict[str, Any] = value
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def path(self, key: str) -> str:
        """The field's path in the manifest."""
        return f"{self._where}.{key}" if self._where else key

    def wrong(self, key: str, must: str) -> BundleError:
        """The error for a field that breaks the format."""
        state = f"must be {must}" if key in self else "is missing"
        return refuse(f"{self.path(key)} {state}")

    def text(self, key: str) -> str:
        """A string."""
        if not isinstance(value := self._values.get(key), str):
            raise self.wrong(key, "a string")
        return value

    def word(self, key: str, among: tuple[str, ...]) -> Any:  # noqa: ANN401 - a Literal
        """One of a few strings."""
        if (found := self.text(key)) not in among:
            raise self.wrong(key, f"one of {', '.join(among)}")
        return found

    def text_or_none(self, key: str) -> str | None:
        """A string or null; the field itself must be there."""
        return None if self.null(key) else self.text(key)

    def true(self, key: str) -> bool:
        """The value true."""
        if self._values.get(key) is not True:
            raise self.wrong(key, "true, or not there")
        return True

    def null(self, key: str) -> bool:
        """Whether null stands there."""
        return key in self and self._values[key] is None

    def number(self, key: str) -> float:
        """A finite number."""
        return self._float(key, self._values.get(key), "a number")

    def natural(self, key: str, least: int, most: int) -> int:
        """An integer from `least` to `most`."""
        value = self._values.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers."""
        must = f"a list of {count} numbers"
        values = self.items(key)
        if len(values) != count:
            raise self.wrong(key, must)
        return tuple(self._float(key, value, must) for value in values)

    def naturals(self, key: str, count: int, below: int) -> tuple[int, ...]:
        """A list of `count` integers, each at least 0 and less than `below`."""
        values = self.items(key)
        if len(values) != count or any(
            type(value) is not int or not 0 <= value < below for value in values
        ):
            raise self.wrong(key, f"a list of {count} whole numbers from 0 to {below - 1}")
        return tuple(values)

    def items(self, key: str) -> list[Any]:
        """A list."""
        if not isinstance(value := self._values.get(key), list):
            raise self.wrong(key, "a list")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, as it is."""
        if not isinstance(value := self._values.get(key), dict):
            raise self.wrong(key, "an object")
        return value

    def fields(self, key: str) -> Fields | None:
        """An object to ask further, or None for null."""
        if self.null(key):
            return None
        return Fields(self.mapping(key), self.path(key))

    def _float(self, key: str, value: object, must: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, must)
        try:
            return float(value)
        except OverflowError as error:
            raise self.wrong(key, must) from error
