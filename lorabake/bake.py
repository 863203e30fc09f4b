"""Baking: read two LoRAs, pair their layers, fuse, write, verify."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import bundle, checks, lora, methods, output, pipelines, recipe
from .device import device as device_named
from .errors import VerifyError
from .lora import Lora, families
from .lora.pairs import Pair
from .methods.method import BOTH, Context, Fused
from .report import Report, conversions
from .runtime.manifest import Layer, Manifest, Source

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


def make(
    content: str | Path,
    style: str | Path,
    output: str | Path,
    method: str | None = None,
    preset: str | None = None,
    base: str | Path | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    content_strength: float = 1.0,
    style_strength: float = 1.0,
    family: str | None = None,
    svd_rank: int | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **params: Any,  # noqa: ANN401 - the method's own parameters
) -> Report:
    """Bake a content LoRA and a style LoRA into one bundle.

    Args:
        content: `.safetensors` file, folder or hub id of the LoRA that gives the subject.
        style: Likewise of the LoRA that gives the style.
        output: The bundle to write.
        method: Fusion method, `klora` unless the preset names another.
        preset: Name of a preset, or path of a `.toml` file.
        base: Base model: recorded in the bundle; if it is a local folder in diffusers format, the
            layers are looked for in it; methods that train do so on it.
        dtype: `float16`, `bfloat16` or `float32`; the wider one of the two LoRAs if not given.
        device: Where to compute.
        content_strength: Factor on the content LoRA, folded into the bundle.
        style_strength: Factor on the style LoRA, folded into the bundle.
        family: Base model family of both, see `lorabake.lora.families.names()`; None to tell it
            from the files.
        svd_rank: Rank to which LoHa, LoKr and the like are reduced where theirs is higher; None to
            take them exactly, or not at all where that needs too high a rank.
        force: Whether an existing output may be replaced, and an interrupted training be lost.
        resume: Whether a training that was interrupted goes on from its checkpoint, which is a
            file beside the output.
        progress: Called as `progress(stage, done, total)`.
        **params: The method's parameters, and `half`, which every method has: `conditional` lets
            the LoRAs act in the conditional half of guidance alone, `both` (if not given) in both.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range.
        TrainingError: A loss is not finite, or a layer has no solution.
        MemoryLackError: Training does not fit into memory.
        VerifyError: What was written is not what went in; nothing is left behind.
    """
    report = bake(
        content, style, output, method=method, preset=preset, params=params, base=base,
        dtype=dtype, device=device, strengths=(content_strength, style_strength), family=family,
        svd_rank=svd_rank, force=force, resume=resume, progress=progress,
    )  # fmt: skip
    for text in report.warnings:
        warnings.warn(text, stacklevel=2)
    return report


def bake(
    content: str | Path,
    style: str | Path,
    output_path: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    params: Mapping[str, Any],
    base: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    strengths: tuple[float, float] = (1.0, 1.0),
    family: str | None = None,
    svd_rank: int | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    detail: Callable[[str], None] = lambda figures: None,
) -> Report:
    """`make` with the method's parameters as a mapping and the strengths as a pair.

    `detail` is told figures of the moment, such as the parts of a loss.
    """
    started = time.perf_counter()
    tell: Progress = progress or (lambda stage, done, total: None)
    chosen = recipe.resolve(method, preset, params)
    inputs = (*checks.inputs((content, style), base, preset), *chosen.paths)
    target = output.check(output_path, force=force, inputs=inputs)
    wanted, where = checks.storage(dtype), device_named(device)
    checks.strengths(strengths)

    loras = lora.read_both(content, style, family=family, svd_rank=svd_rank)
    paired = lora.pair(*loras)
    # What is only guessed gets no layers that its base model might not have.
    known = None if all(one.rivals for one in loras) else lora.common_family(*loras)
    pairs = bundle.complete(paired, known)
    checks.size(pairs)
    pairs = bundle.strengthen(pairs, strengths)
    if base is not None:
        checks.base(base, pairs)
    checkpoint = target.with_name(f"{target.name}.training")
    identity = _identity(loras, strengths, base, svd_rank)
    context = Context(where, tell, detail, base, checkpoint, resume, force, identity)
    fused = methods.get(chosen.method).fuse(pairs, chosen.params, context)
    if fused.pairs is not None:
        pairs, fused = _whole(fused.pairs, fused, known)
    wanted = wanted or bundle.widest(loras[0].dtypes | loras[1].dtypes)
    pairs = bundle.strengthen(pairs, fused.strengths)
    if fused.columns is not None:
        pairs = bundle.with_columns(pairs, fused.columns, wanted)
    total = (strengths[0] * fused.strengths[0], strengths[1] * fused.strengths[1])
    manifest = _manifest(chosen, loras, pairs, fused, total, base, svd_rank)
    verified = _write(target, manifest, pairs, wanted, tell)
    warned = fused.warnings
    if fused.checkpoint is not None:
        with contextlib.suppress(OSError):
            fused.checkpoint.unlink(missing_ok=True)
    elif resume:
        warned += (f"{chosen.method} keeps no checkpoints, so there was nothing to resume",)
    return Report(
        output=str(output_path),
        method=chosen.method,
        params=dict(chosen.params_dict),
        half=chosen.half,
        family=manifest.family,
        base=manifest.base,
        dtype=str(wanted).removeprefix("torch."),
        layers=len(pairs),
        shared=sum(pair.both for pair in pairs),
        rivals=_rivals(loras, manifest.family),
        conversions=conversions(dict(zip(checks.ROLES, loras, strict=True))),
        notes=fused.notes or {},
        warnings=warned,
        checks=verified,
        seconds=round(time.perf_counter() - started, 3),
    )


def _whole(
    kept: Sequence[Pair], fused: Fused, family: str | None
) -> tuple[tuple[Pair, ...], Fused]:
    """What a method has kept, with the empty layers that loaders look for."""
    rules = {one.name: rule for one, rule in zip(kept, fused.plan.rules, strict=True)}
    pairs = bundle.complete(kept, family)
    plan = replace(fused.plan, rules=tuple(rules.get(one.name, BOTH) for one in pairs))
    return pairs, replace(fused, plan=plan)


def _write(
    target: Path, manifest: Manifest, pairs: Sequence[Pair], dtype: torch.dtype, tell: Progress
) -> bundle.Checks:
    """Write and verify beside the target; only a bundle that holds takes its place."""
    ranks = bundle.uniform_ranks(pairs)
    denoiser = families.get(manifest.family).denoiser
    metadata = bundle.modelspec(
        manifest,
        families.get(manifest.family).architecture,
        ranks.get(denoiser, max(ranks.values())),
    )
    with output.replacing(target) as file:
        digest = bundle.write(
            file, manifest, pairs, dtype, metadata=metadata, progress=partial(tell, "writing")
        )
        verified = bundle.compare(Path(file.name), pairs, partial(tell, "verifying"))
        if verified.digest != digest:
            raise VerifyError(f"{target}: the digest in the file is not that of its tensors.")
        return verified


def _manifest(
    chosen: recipe.Recipe,
    loras: tuple[Lora, Lora],
    pairs: Sequence[Pair],
    fused: Fused,
    strengths: tuple[float, float],
    base: str | Path | None,
    svd_rank: int | None,
) -> Manifest:
    family = families.get(lora.common_family(*loras))
    layers = [
        Layer(*pair.name, *family.keys(pair.name), pair.ranks, rule, pair.columns)
        for pair, rule in zip(pairs, fused.plan.rules, strict=True)
    ]
    sources = [
        Source(
            role=role,
            strength=strength,
            svd_rank=svd_rank if one.conversions else None,
            **asdict(one.provenance),
        )
        for role, strength, one in zip(checks.ROLES, strengths, loras, strict=True)
    ]
    return Manifest(
        method=chosen.method,
        params=dict(chosen.params_dict),
        family=family.name,
        base=_base_id(base),
        sources=tuple(sources),
        layers=tuple(layers),
        scale=fused.plan.scale,
        digest="0" * 64,
        selection=fused.selection,
        guidance=fused.guidance,
        half=chosen.half,
    )


def _identity(
    loras: tuple[Lora, Lora],
    strengths: tuple[float, float],
    base: str | Path | None,
    svd_rank: int | None,
) -> dict[str, Any]:
    """What work on these LoRAs depends on; as JSON values."""
    return {
        "sources": [one.provenance.sha256 for one in loras],
        "strengths": list(strengths),
        "base": None if base is None else str(_resolved(base)),
        "svd_rank": svd_rank,
    }


def _base_id(base: str | Path | None) -> str | None:
    """What a bundle calls its base: an id as it is, a folder by its name, never by its path."""
    if base is None:
        return None
    found = _resolved(base)
    return found.name if isinstance(found, Path) else found


def _resolved(base: str | Path) -> Path | str:
    """A local model's folder, or an id."""
    folder = pipelines.folder(base)
    return folder.resolve() if folder else str(base)


def _rivals(loras: tuple[Lora, Lora], family: str) -> tuple[str, ...]:
    """Families that neither of the LoRAs rules out, beside the one that was taken."""
    possible = [{one.family, *one.rivals} for one in loras]
    return tuple(sorted((possible[0] & possible[1]) - {family}))
