"""Whether a bundle is still what was made, and if not, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import runtime
from ..errors import BundleError, PairError, VerifyError
from ..lora import pair, read_both
from ..lora.pairs import Pair
from ..runtime.manifest import Manifest
from ..runtime.plan import Constant
from . import changes
from .columns import with_columns
from .compare import Checks, coefficients, compare, fits
from .complete import complete
from .find import located
from .names import check_names
from .stack import strengthen


def verify(
    path: str | Path,
    against: tuple[str | Path, str | Path] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checks:
    """Check a bundle's digest and names, and its updates against the LoRAs it was made of.

    A bundle that was saved again in another precision, or with its tensors in another order, still
    holds: that it was no more than that is told by the digest (wider, reordered) or the sources.

    Args:
        path: The bundle: a file, a folder or a hub id.
        against: Content and style LoRA; None to check the bundle by itself.
        progress: Called as `progress(layers done, layers in all)`.

    Raises:
        BundleError: It is damaged, not made of these LoRAs, or another tool has made a plain LoRA
            of it; the message says how.
        LoraFileError: A LoRA cannot be read.
    """
    bundle = _opened(located(path))
    intact = bundle.intact()
    bundle.check_finite()
    try:
        coefficients(bundle)
    except BundleError as error:
        if intact:
            raise
        raise _changed(bundle, mixed=True) from error
    original = None if intact else changes.written(bundle)
    resaved = "" if intact else _short(_dtype(bundle))
    try:
        check_names(bundle)
        if against is None:
            if not (intact or original):
                raise _changed(bundle)
            layers, digest = len(bundle.manifest.layers), bundle.manifest.digest
            return Checks(layers, 0, 0.0, "", digest, resaved=resaved)
        pairs, left_out = _sources(bundle, against)
        rounded = None if intact else original or changes.coarsest(bundle)
        try:
            checks = compare(bundle.path, pairs, progress, rounded)
        except VerifyError as error:
            if intact or original or not fits(bundle, pairs):
                raise
            raise _changed(bundle, pairs, rounded) from error
        if not intact and (changes.misfit(bundle.path) or changes.padded(bundle)):
            raise _changed(bundle, pairs, rounded)
        return replace(checks, left_out=left_out, resaved=resaved)
    except (PairError, VerifyError) as error:
        what = str(error).removeprefix(f"{bundle.path}: ").rstrip(".")
        raise BundleError(what, where=str(bundle.path)) from error


def _opened(path: Path) -> runtime.Bundle:
    try:
        return runtime.read(path)
    except BundleError as error:
        if what := changes.misfit(path):
            raise BundleError(
                f"another tool has changed it: {what}", where=str(path), advice=changes.PLAIN
            ) from error
        raise


def _sources(
    bundle: runtime.Bundle, against: tuple[str | Path, str | Path]
) -> tuple[Sequence[Pair], int]:
    """What the bundle was made of by layer, and how many updates of the LoRAs are not in it."""
    manifest = bundle.manifest
    svd_rank = next((source.svd_rank for source in manifest.sources if source.svd_rank), None)
    pairs = pair(*read_both(*against, family=manifest.family, svd_rank=svd_rank))
    kept = _kept(pairs, manifest)
    strengths = (manifest.sources[0].strength, manifest.sources[1].strength)
    left_out = _updates(pairs) - _updates(kept)
    names = {str(layer) for layer in manifest.layers} | {str(one.name) for one in kept}
    # Which empty layers are added has changed over time.
    whole = [one for one in complete(kept, manifest.family) if str(one.name) in names]
    return _weighted(bundle, strengthen(whole, strengths)), left_out


def _updates(pairs: Sequence[Pair]) -> int:
    return sum(source is not None for one in pairs for source in one.loras)


def _kept(pairs: Sequence[Pair], manifest: Manifest) -> Sequence[Pair]:
    """The sources without what the bundle lacks; a plan that chooses lacks nothing."""
    if not all(isinstance(layer.rule, Constant) for layer in manifest.layers):
        return pairs
    ranks = {str(layer): layer.ranks for layer in manifest.layers}
    kept: list[Pair] = []
    for one in pairs:
        content, style = ranks.get(str(one.name), (0, 0))
        has = replace(
            one, content=one.content if content else None, style=one.style if style else None
        )
        kept += [has] if any(has.ranks) else []
    return kept


def _dtype(bundle: runtime.Bundle) -> torch.dtype:
    return bundle.factors(bundle.manifest.layers[0], 0)[0].dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _changed(
    bundle: runtime.Bundle,
    pairs: Sequence[Pair] | None = None,
    rounded: torch.dtype | None = None,
    *,
    mixed: bool = False,
) -> BundleError:
    """The error of a bundle whose numbers are others; with the sources it tells which."""
    advice = changes.PLAIN
    if resized := changes.misfit(bundle.path):
        what = resized
    elif pairs is not None:
        what = changes.became(bundle, pairs, rounded)
    elif mixed or changes.padded(bundle):
        what = "its ranks were shuffled or added to, or factored anew by an SVD"
    else:
        what = "another tool has changed their numbers"
        advice = (
            f"If they were only saved in another precision ({_short(_dtype(bundle))} now), the "
            "plan still holds: `lorabake verify --against CONTENT STYLE` tells. Otherwise "
            f"{changes.PLAIN[0].lower()}{changes.PLAIN[1:]}"
        )
    return BundleError(
        f"its tensors are not those it was made with (the digest differs): {what}",
        where=str(bundle.path),
        advice=advice,
    )


def _weighted(bundle: runtime.Bundle, pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The sources times the bundle's own column coefficients."""
    found = coefficients(bundle)
    try:
        return with_columns(pairs, [found.get(str(pair.name)) for pair in pairs], torch.float32)
    except ValueError as error:
        raise VerifyError(f"{bundle.path}: its column coefficients do not fit: {error}.") from error
