"""Ways to paint: what is at work in the pipeline for each column of a comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import AttachError, OverrideError
from ..pipelines.generate import gated
from ..runtime.bundle import Bundle
from ..runtime.manifest import dumps
from ..runtime.overrides import GUIDANCE, LIVE, SCALE, STRENGTHS, settings, strength
from .judges import Judges
from .rendering import Attach
from .variants import ANCHORS, Variant


@dataclass(frozen=True)
class Way:
    """One column.

    Attributes:
        label: What it is called.
        anchor: Whether it is there always.
        method: Its method, if it has one.
        parameters: What was given for it.
        file: Its bundle; None for none.
        digest: Of the bundle's tensors.
        reason: Why it cannot be painted; empty if it can.
        attach: What is at work; None for nothing.
        settings: What its pictures depend on.
        alone: Whether each picture must have a call of its own.
        shared: Whether comparisons of other pairs have the same pictures.
    """

    label: str
    anchor: bool = False
    method: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file: Path | None = None
    digest: str = ""
    reason: str = ""
    attach: Attach | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    alone: bool = False
    shared: bool = False


def anchors(direct: Bundle) -> tuple[Way, ...]:
    """Base, content only, style only, direct merge.

    Args:
        direct: The direct merge, in float32: what one LoRA does alone must not depend on the
            other one's dtype, so that its pictures serve every pair that it is in.
    """
    base, content, style, merge = ANCHORS
    alone = [
        Way(
            label, anchor=True, attach=partial(_attached, gated(direct, gates), {}, None),
            settings={"lora": source.sha256, "svd_rank": source.svd_rank}, shared=True,
        )
        for label, gates, source in zip(
            (content, style), ((1.0, 0.0), (0.0, 1.0)), direct.manifest.sources, strict=True
        )
    ]  # fmt: skip
    digest = direct.manifest.digest
    return (
        Way(base, anchor=True, shared=True),
        *alone,
        Way(
            merge, anchor=True, method="direct", file=direct.path, digest=digest,
            attach=partial(_attached, direct, {}, None), settings={"bundle": digest},
        ),
    )  # fmt: skip


def way(variant: Variant, bundle: Bundle, judges: Judges) -> Way:
    """The way of a variant.

    Raises:
        OverrideError: A load-time parameter is out of range, or the bundle has no such one.
    """
    manifest, overrides = bundle.manifest, dict(variant.overrides)
    guided = manifest.guidance is not None and overrides.get("guidance", True) is not False
    _check(bundle, overrides, guided=guided)
    plan = hashlib.sha256(dumps(manifest).encode()).hexdigest()
    told: dict[str, Any] = {"bundle": manifest.digest, "plan": plan, "overrides": overrides}
    alone = (overrides.get("scope") or getattr(manifest.selection, "scope", None)) == "batch"
    if alone:
        told["alone"] = True
    if guided:
        told["encoders"] = {k: v.digest for k, v in judges.judges.items() if k in _GUIDES}
    return Way(
        variant.label, method=manifest.method, parameters={**variant.params, **overrides},
        file=bundle.path, digest=manifest.digest, settings=told, alone=alone,
        attach=partial(_attached, bundle, overrides, judges if guided else None),
    )  # fmt: skip


_GUIDES = ("clip", "dino")


def _attached(
    bundle: Bundle,
    overrides: Mapping[str, Any],
    judges: Judges | None,
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
) -> AbstractContextManager[object]:
    seeing = None
    if judges is not None:
        seeing = {role: judges.sees[role] for role in _GUIDES if role in judges.sees}
        if len(seeing) < len(_GUIDES):
            raise AttachError(
                "it guides its latents by CLIP and DINO, which are not both there",
                where=str(bundle.path), advice="Give --clip and --dino, or guidance=false",
            )  # fmt: skip
    return bundle.attach(pipe, encoders=seeing, **overrides)


def _check(bundle: Bundle, overrides: Mapping[str, Any], *, guided: bool) -> None:
    """Refuse values now that would be refused when much has been painted."""
    known = (*SCALE, *LIVE, *GUIDANCE)
    settings(bundle.manifest, {k: v for k, v in overrides.items() if k in known}, guided=guided)
    for name in STRENGTHS:
        if name in overrides:
            strength(name, overrides[name])
    if not isinstance(overrides.get("guidance", True), bool):
        raise OverrideError(
            f"{overrides['guidance']!r} is neither true nor false", where="guidance",
            advice="Give one of the two",
        )  # fmt: skip
