"""Whether the updates in a bundle are those of its sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import runtime
from ..errors import VerifyError
from ..lora.pairs import Pair
from .deviation import SLACK, deviation
from .names import check_names

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
        left_out: Updates of the sources that the method left out of the bundle.
        resaved: The dtype in which another tool has saved the tensors again, so that the digest
            is not theirs but the plan holds; empty if nobody has.
    """

    layers: int
    compared: int
    worst_error: float
    worst_layer: str
    digest: str
    left_out: int = 0
    resaved: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        how = f"saved again in {self.resaved}, its plan holds" if self.resaved else "undamaged"
        told = f"{self.layers} layers, {how}"
        if self.compared:
            rounding = f"within rounding (worst {self.worst_error:.1e}, {self.worst_layer})"
            how = rounding if self.worst_layer else "exactly"
            told += f"; all {self.compared} updates equal their sources {how}"
        if self.left_out:
            told += f"; {self.left_out} updates of the sources are left out by the method"
        return told


def compare(
    path: Path,
    pairs: Sequence[Pair],
    progress: Callable[[int, int], None] = lambda done, total: None,
    rounded: torch.dtype | None = None,
) -> Checks:
    """Read a bundle back and compare it with what it was made of, but for its digest.

    Args:
        path: The bundle.
        pairs: Its sources by layer, in its order, every strength in their scales, with their
            column coefficients if it has any.
        progress: Called as `progress(layers done, layers in all)`.
        rounded: If another tool has saved the bundle again, in which dtype it was rounded.

    Raises:
        BundleError: The file is not a whole bundle.
        VerifyError: Names, ranks or column coefficients differ, or updates by more than the
            rounding of the bundle's dtype.
    """
    bundle = runtime.read(path)
    check_names(bundle)
    layers = bundle.manifest.layers
    if not fits(bundle, pairs):
        raise VerifyError(f"{path}: its layers or ranks are not those of the two LoRAs.")
    _check_coefficients(bundle, pairs)
    worst, where, compared = 0.0, "", 0
    slack = SLACK if rounded else 1.0
    for done, (layer, one) in enumerate(zip(layers, pairs, strict=True), 1):
        for i, source in enumerate((one.content, one.style)):
            if source is None:
                continue
            found = deviation(bundle.factors(layer, i), source, rounded)
            if not found.error <= slack * found.allowed:
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
    found = coefficients(bundle)
    for one in pairs:
        wanted = tuple(x.columns for x in one.loras if x is not None and x.columns is not None)
        stored = found.get(str(one.name), ())
        if len(stored) != len(wanted) or not all(map(torch.equal, stored, wanted)):
            raise VerifyError(f"{bundle.path}: {one.name} has other column coefficients.")


def coefficients(bundle: runtime.Bundle) -> dict[str, tuple[Tensor, Tensor]]:
    """The bundle's column coefficients by layer; empty if it has none."""
    return bundle.coefficients() if bundle.manifest.columns else {}


def fits(bundle: runtime.Bundle, pairs: Sequence[Pair]) -> bool:
    """Whether these are the bundle's layers, of its ranks and shapes."""
    found = [(str(x), x.ranks, bundle.shape(x)) for x in bundle.manifest.layers]
    return [(str(x.name), x.ranks, x.shape) for x in pairs] == found
