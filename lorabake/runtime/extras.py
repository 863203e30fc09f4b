"""The manifest's optional objects: `live` and `guidance` (since format 1.2)."""

from __future__ import annotations

import math
from typing import Any, get_args

from .fields import Fields
from .guidance import MAX_EMBEDDING, MAX_EVERY, MAX_FORCE, Guidance, Reference, Through
from .selection import (
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MIN_TEMPERATURE,
    Criterion,
    Scope,
    Selection,
)


def selection(top: Fields) -> Selection | None:
    """The object `live`; None if it is not there.

    Raises:
        BundleError: It breaks the format.
    """
    if "live" not in top:
        return None
    of = Fields(top.mapping("live"), top.path("live"))
    found = Selection(
        criterion=of.word("criterion", get_args(Criterion)),
        temperature=of.number("temperature"),
        scope=of.word("scope", get_args(Scope)),
        tokens=of.natural("tokens", 0, MAX_TOKENS),
    )
    if not MIN_TEMPERATURE <= found.temperature <= MAX_TEMPERATURE:
        raise of.wrong("temperature", f"from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    return found


def guidance(top: Fields) -> Guidance | None:
    """The object `guidance`; None if it is not there.

    Raises:
        BundleError: It breaks the format.
    """
    if "guidance" not in top:
        return None
    of = Fields(top.mapping("guidance"), top.path("guidance"))
    values = of.items("references")
    if len(values) != 2:
        raise of.wrong("references", "a list of two references, content and style")
    content, style = (
        _reference(Fields(value, of.path(f"references[{i}]"))) for i, value in enumerate(values)
    )
    for name in ("clip", "dino"):
        if len(getattr(content, name)) != len(getattr(style, name)):
            raise of.wrong("references", f"two references with {name} embeddings of one size")
    encoders = Fields(of.mapping("encoders"), of.path("encoders"))
    content_clip, style_clip, style_dino = of.numbers("weights", 3)
    found = Guidance(
        references=(content, style),
        clip=encoders.text("clip"),
        dino=encoders.text("dino"),
        m=of.number("m"),
        every=of.natural("every", 1, MAX_EVERY),
        through=of.word("through", get_args(Through)),
        weights=(content_clip, style_clip, style_dino),
    )
    if not 0 <= found.m <= MAX_FORCE:
        raise of.wrong("m", f"a number from 0 to {MAX_FORCE}")
    if not all(0 <= weight <= MAX_FORCE for weight in found.weights):
        raise of.wrong("weights", f"a list of 3 numbers from 0 to {MAX_FORCE}")
    return found


def guidance_value(of: Guidance) -> dict[str, Any]:
    """The object `guidance` as JSON values."""
    return {
        "references": [
            {"clip": _shortest(x.clip), "dino": _shortest(x.dino), "prompt": x.prompt,
             "seed": x.seed} for x in of.references
        ],
        "encoders": {"clip": of.clip, "dino": of.dino},
        "m": float(of.m),
        "every": of.every,
        "through": of.through,
        "weights": [float(weight) for weight in of.weights],
    }  # fmt: skip


def _shortest(embedding: tuple[float, ...]) -> list[float]:
    """Nine digits tell one float32 from any other; a double's repr has seventeen."""
    return [float(f"{value:.9g}") for value in embedding]


def _reference(of: Fields) -> Reference:
    seed = None if of.null("seed") else of.natural("seed", 0, 2**63 - 1)
    if (seed is None) != of.null("prompt"):
        raise of.wrong("seed", "null where prompt is, and nowhere else")
    return Reference(
        clip=_embedding(of, "clip"),
        dino=_embedding(of, "dino"),
        prompt=of.text_or_none("prompt"),
        seed=seed,
    )


def _embedding(of: Fields, key: str) -> tuple[float, ...]:
    count = len(of.items(key))
    if not 0 < count <= MAX_EMBEDDING:
        raise of.wrong(key, f"a list of 1 to {MAX_EMBEDDING} numbers")
    values = of.numbers(key, count)
    # Of length 1, that is, but for rounding; cosines of others may overflow or vanish.
    if not 0.5 < math.hypot(*values) < 2:
        raise of.wrong(key, "a list of numbers whose squares add up to 1")
    return values
