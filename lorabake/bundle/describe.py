"""What `inspect --json` prints: a bundle as plain values."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..runtime import Bundle
from ..runtime.extras import guidance_value
from ..runtime.guidance import Guidance
from ..runtime.plan import Live, Threshold


def describe(bundle: Bundle, steps: int | None = None) -> dict[str, Any]:
    """A bundle as JSON values.

    Args:
        bundle: What to describe.
        steps: With a number, every layer tells what it applies at each of so many steps: 0
            content, 1 style, None where both are applied.
    """
    manifest = bundle.manifest
    coefficients = bundle.coefficients() if manifest.columns else {}
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
            "live": isinstance(layer.rule, Live),
            "coefficients": _means(coefficients.get(str(layer))),
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
                "svd_rank": source.svd_rank,
            }
            for source in manifest.sources
        ],
        "half": manifest.half,
        "live": manifest.selection and vars(manifest.selection),
        "guidance": manifest.guidance and _guidance(manifest.guidance),
        "gamma": manifest.scale.gamma if manifest.scale is not None else None,
        "digest": manifest.digest,
        "layers": layers,
    }


def _guidance(of: Guidance) -> dict[str, Any]:
    """All but the embeddings themselves, of which the sizes are told."""
    references = [
        {"prompt": x.prompt, "seed": x.seed, "clip": len(x.clip), "dino": len(x.dino)}
        for x in of.references
    ]
    return guidance_value(of) | {"references": references}


def _means(columns: tuple[Tensor, Tensor] | None) -> dict[str, float] | None:
    """Means over a layer's columns: of m_c, of m_s and of |m_c·m_s|, the overlap of the two."""
    if columns is None:
        return None
    content, style = columns
    overlap = (content * style).abs()
    return {
        "content": float(content.mean()),
        "style": float(style.mean()),
        "product": float(overlap.mean()),
    }
