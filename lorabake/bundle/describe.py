"""What `inspect --json` prints: a bundle as plain values."""

from __future__ import annotations

from typing import Any

from ..runtime import Bundle
from ..runtime.plan import Threshold


def describe(bundle: Bundle, steps: int | None = None) -> dict[str, Any]:
    """A bundle as JSON values.

    Args:
        bundle: What to describe.
        steps: With a number, every layer tells what it applies at each of so many steps: 0
            content, 1 style, None where both are applied.
    """
    manifest = bundle.manifest
    layers: list[dict[str, Any]] = []
    for layer in manifest.layers:
        scores = layer.rule.scores if isinstance(layer.rule, Threshold) else (None, None)
        entry: dict[str, Any] = {
            "component": layer.component,
            "module": layer.module,
            "content_rank": layer.ranks[0],
            "style_rank": layer.ranks[1],
            "content_score": scores[0],
            "style_score": scores[1],
        }
        if steps is not None:
            entry["select"] = list(bundle.select(layer, steps))
        layers.append(entry)
    return {
        "format": ".".join(map(str, manifest.format)),
        "method": manifest.method,
        "params": manifest.params,
        "family": manifest.family,
        "base": manifest.base,
        "sources": [
            {
                "role": source.role,
                "name": source.name,
                "sha256": source.sha256,
                "strength": source.strength,
                "trigger_words": list(source.trigger_words),
                "base_model": source.base_model,
                "license": source.license,
            }
            for source in manifest.sources
        ],
        "gamma": manifest.scale.gamma if manifest.scale is not None else None,
        "digest": manifest.digest,
        "layers": layers,
    }
