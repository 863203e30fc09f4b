"""What a kind of adapter is: one way to write a layer's update ΔW with few numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..suffixes import Slot
from ..types import LowRank

Tensors = Mapping[Slot, Tensor]
"""A module's tensors by their role; all shapes are checked by `Kind.size` before anything else."""


class Size(NamedTuple):
    """What the tensors of one module amount to.

    Attributes:
        shape: Of ΔW, `(out, in)` or `(out, in, kh, kw)`; some kinds write convolutions flat, as
            `(out, in·kh·kw)`.
        rank: Of the factors whose product is ΔW exactly.
        divisor: What alpha is divided by; None where it has no effect.
    """

    shape: tuple[int, ...]
    rank: int
    divisor: int | None


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of adapter. Each module in `kinds/` has one, as `KIND`.

    Attributes:
        name: How messages call it.
        layouts: Which tensors a module may have; alpha may always be there besides.
        needs: The same in words.
        shapes: Which shapes they must have, in words.
        size: What the tensors amount to; None if their shapes contradict each other.
        exact: Factors of ΔW without alpha, in float32 unless they are the tensors themselves.
        nearest: The nearest factors of this rank, in float32, and ‖error‖ / ‖ΔW‖.
        plain: Whether the tensors are the factors.
    """

    name: str
    layouts: tuple[frozenset[Slot], ...]
    needs: str
    shapes: str
    size: Callable[[Tensors], Size | None]
    exact: Callable[[Tensors], LowRank]
    nearest: Callable[[Tensors, int], tuple[LowRank, float]]
    plain: bool = False

    @cached_property
    def slots(self) -> frozenset[Slot]:
        """Every role that a tensor may have."""
        return frozenset[Slot]().union(*self.layouts)
