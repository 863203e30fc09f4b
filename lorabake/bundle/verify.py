"""Whether a written bundle is what went in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import BundleError, PairError, VerifyError
from ..lora import pair, read_both
from ..lora.pairs import Pair
from .columns import with_columns
from .complete import complete
from .deviation import deviation
from .names import check_names
from .stack import strengthen

_BATCH = 64
"""Layers compared per opening of the file; in between, memory of mapped pages is given back."""


@dataclass(frozen=True)
class Checks:
    """What was checked, and how well it holds.

    Attributes:
        layers: Layers in the bundle.
        compared: Updates ΔW compared with a source, two for a layer that both LoRAs have.
        worst_error: Largest relative Frobenius error of an update; 0 if all are exact copies.
        worst_layer: Where that is; empty if nowhere.
        digest: SHA-256 of the tensor data, as the manifest has it.
    """

    layers: int
    compared: int
    worst_error: float
    worst_layer: str
    digest: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        whole = f"{self.layers} layers, undamaged"
        if not self.compared:
            return whole
        if not self.worst_layer:
            return f"{whole}; all {self.compared} updates equal their sources exactly"
        return (
            f"{whole}; all {self.compared} updates equal their sources within rounding "
            f"(worst {self.worst_error:.1e}, {self.worst_layer})"
        )


def compare(
    path: Path,
    pairs: Sequence[Pair],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checks:
    """Read a bundle back and compare it with what it was made of, but for its digest.

    Args:
        path: The bundle.
        pairs: Its sources by layer, in its order, every strength in their scales, with their
            column coefficients if it has any.
        progress: Called as `progress(layers done, layers in all)`.

    Raises:
        BundleError: The file is not a whole bundle.
        VerifyError: Names, ranks or column coefficients differ, or updates by more than the
            rounding of the bundle's dtype.
    """
    bundle = runtime.read(path)
    check_names(bundle)
    layers = bundle.manifest.layers
    if [(str(one.name), one.ranks) for one in pairs] != [(str(x), x.ranks) for x in layers]:
        raise VerifyError(f"{path}: its layers or ranks are not those of the two LoRAs.")
    _check_coefficients(bundle, pairs)
    worst, where, compared = 0.0, "", 0
    for done, (layer, one) in enumerate(zip(layers, pairs, strict=True), 1):
        for i, source in enumerate((one.content, one.style)):
            if source is None:
                continue
            found = deviation(bundle.factors(layer, i), source)
            if not found.error <= found.allowed:
                raise VerifyError(
                    f"{path}: {layer} differs from the {bundle.manifest.sources[i].role} LoRA by "
                    f"{found.relative:.2g} of its norm, more than rounding explains."
                )
            compared += 1
            if found.relative > worst:
                worst, where = found.relative, str(layer)
        if done % _BATCH == 0:
            bundle = runtime.read(path)
        progress(done, len(layers))
    return Checks(len(layers), compared, worst, where, bundle.manifest.digest)


def _check_coefficients(bundle: runtime.Bundle, pairs: Sequence[Pair]) -> None:
    """Check that the column coefficients are exactly these."""
    found = _coefficients(bundle)
    for one in pairs:
        wanted = tuple(x.columns for x in one.loras if x is not None and x.columns is not None)
        stored = found.get(str(one.name), ())
        if len(stored) != len(wanted) or not all(map(torch.equal, stored, wanted)):
            raise VerifyError(f"{bundle.path}: {one.name} has other column coefficients.")


def _coefficients(bundle: runtime.Bundle) -> dict[str, tuple[Tensor, Tensor]]:
    return bundle.coefficients() if bundle.manifest.columns else {}


def _weighted(bundle: runtime.Bundle, pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The sources times the bundle's own column coefficients."""
    found = _coefficients(bundle)
    try:
        return with_columns(pairs, [found.get(str(pair.name)) for pair in pairs], torch.float32)
    except ValueError as error:
        raise VerifyError(f"{bundle.path}: its column coefficients do not fit: {error}.") from error


def verify(
    path: str | Path,
    against: tuple[str | Path, str | Path] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checks:
    """Check a bundle's digest and names, and its updates against the LoRAs it was made of.

    Args:
        path: The bundle's file.
        against: Content and style LoRA; None to check the bundle by itself.
        progress: Called as `progress(layers done, layers in all)`.

    Raises:
        BundleError: It is damaged, or not made of these LoRAs.
        LoraFileError: A LoRA cannot be read.
    """
    bundle = runtime.read(path, verify=True)
    manifest = bundle.manifest
    try:
        if against is None:
            check_names(bundle)
            return Checks(len(manifest.layers), 0, 0.0, "", manifest.digest)
        content, style = read_both(*against, family=manifest.family)
        strengths = (manifest.sources[0].strength, manifest.sources[1].strength)
        pairs = strengthen(complete(pair(content, style)), strengths)
        return compare(Path(path), _weighted(bundle, pairs), progress)
    except (PairError, VerifyError) as error:
        what = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise BundleError(what, where=str(path)) from error
