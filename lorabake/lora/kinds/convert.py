"""Modules of any kind → plain factors: exactly, or as near as the caller allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import NamedTuple

import torch

from ...errors import LoraFileError, RecipeError, UnsupportedLoraError
from ..energy import energy
from ..types import Conversion, LayerName, LowRank
from .kind import Kind, Size, Tensors

MAX_SVD_RANK = 8192
_MODEST = 256
"""A rank that plain LoRAs have too; a bundle gives all layers the rank of the largest."""
_FREE, _GROWTH = 2**27, 64
"""Bytes, and how many times a file's own, that its exact factors may take without being asked."""
_MAX_SIDE = 2**17
"""Beyond any layer of any model, so that a few bytes cannot ask for a huge ΔW."""
_MAX_WORK = 2**29
"""Entries that reducing one layer may take."""
_MAX_ENTRIES = 2**31
"""Entries that all converted layers of a file may have."""


class Module(NamedTuple):
    """One module of a file, checked: its name there, its kind, its tensors and their size."""

    key: str
    kind: Kind
    tensors: Tensors
    size: Size

    @property
    def rank(self) -> int:
        """Rank of the exact factors: none needs more than the dense ΔW has rows or columns."""
        return min(self.size.rank, self.size.shape[0], math.prod(self.size.shape[1:]))

    @property
    def outline(self) -> LowRank:
        """Factors of its shape and rank, without numbers."""
        down = torch.empty((self.rank, *self.size.shape[1:]), device="meta")
        ones = tuple(1 for _ in self.size.shape[2:])
        up = torch.empty((self.size.shape[0], self.rank, *ones), device="meta")
        return LowRank(down, up)

    @property
    def entries(self) -> int:
        """Entries of ΔW."""
        return math.prod(self.size.shape)

    @property
    def per_rank(self) -> int:
        """Entries that each rank of the factors takes: out + in."""
        return self.size.shape[0] + math.prod(self.size.shape[1:])


@dataclass
class Converter:
    """Converts a file's modules and keeps account of it.

    Attributes:
        where: The file, for messages.
        svd_rank: Rank to which layers that are no plain LoRA are reduced; None to take them
            exactly or not at all.
        conversions: What was converted.
    """

    where: str
    svd_rank: int | None = None
    conversions: list[Conversion] = field(default_factory=list[Conversion])

    def __post_init__(self) -> None:
        """Check the rank.

        Raises:
            RecipeError: It is out of range.
        """
        rank = self.svd_rank
        if rank is not None and not (type(rank) is int and 1 <= rank <= MAX_SVD_RANK):
            raise RecipeError(
                f"must be a whole number from 1 to {MAX_SVD_RANK}, not {rank}", where="svd_rank"
            )

    def check(self, modules: Sequence[Module]) -> None:
        """Refuse modules that would become too large, before anything is multiplied.

        Exact factors are taken as long as their rank is modest, and a small file stays small.

        Raises:
            LoraFileError: A layer is larger than any model's.
            UnsupportedLoraError: Some have no small exact factors and no rank is given.
        """
        others = [module for module in modules if not module.kind.plain]
        for module in others:
            self._check_side(module)
        large = [module for module in others if module.rank > _MODEST]
        if self.svd_rank is None and (large or self._swells(others)):
            raise self._too_large(large or others, len(modules))
        decomposed = [m for m in others if m.rank < m.size.rank or not self._is_exact(m)]
        work = max((min(m.rank * m.per_rank, m.entries) for m in decomposed), default=0)
        entries = sum(m.per_rank * min(m.rank, self.svd_rank or m.rank) for m in others)
        if work > _MAX_WORK or entries > _MAX_ENTRIES:
            raise UnsupportedLoraError(
                "its layers are too large to be turned into plain LoRA factors",
                where=self.where,
                advice="Give a small --svd-rank, such as 32, or extract a plain LoRA from it",
            )

    def _check_side(self, module: Module) -> None:
        rows, columns = module.size.shape[0], math.prod(module.size.shape[1:])
        if max(rows, columns) > _MAX_SIDE:
            raise LoraFileError(
                f"{module.key} would change a layer of {rows} × {columns} weights, which no model "
                "has",
                where=self.where,
                advice="The file is damaged; download or save it again",
            )

    def _swells(self, modules: Sequence[Module]) -> bool:
        """Whether exact factors would take many times what the file does, and much memory."""
        own = sum(tensor.nbytes for one in modules for tensor in one.tensors.values())
        return _bytes(modules) > max(_FREE, _GROWTH * own)

    def _is_exact(self, module: Module) -> bool:
        return self.svd_rank is None or module.rank <= self.svd_rank

    def _too_large(self, large: Sequence[Module], total: int) -> UnsupportedLoraError:
        worst = max(large, key=lambda module: module.rank)
        kinds = " and ".join(sorted({module.kind.name for module in large}))
        return UnsupportedLoraError(
            f"{len(large)} of its {total} layers ({kinds}) are no plain LoRA of a small rank: "
            f"exactly, {worst.key} would need rank {worst.rank}, and all of them "
            f"{_bytes(large) / 2**20:,.0f} MB",
            where=self.where,
            advice="Give --svd-rank 64 to take the nearest LoRA of that rank; the report then says "
            "what it costs in each layer",
        )

    def factors(self, module: Module) -> tuple[LowRank, Conversion | None]:
        """A module's factors without alpha, and the account of it if it is no plain LoRA.

        Raises:
            LoraFileError: Float32 cannot hold them.
        """
        if module.kind.plain:
            return module.kind.exact(module.tensors), None
        try:
            found, error = self._converted(module)
        except torch.linalg.LinAlgError as e:  # pyright: ignore[reportPrivateImportUsage]
            raise self._overflow(module) from e
        if not all(math.isfinite(float(x)) for t in (found.down, found.up) for x in t.aminmax()):
            raise self._overflow(module)
        norm = math.sqrt(energy(found) / (1 - error**2)) if error < 1 else 0.0
        dtype = reduce(torch.promote_types, (t.dtype for t in module.tensors.values()))
        done = Conversion((), module.kind.name, module.rank, found.rank, error, norm, dtype)
        return found, done

    def _converted(self, module: Module) -> tuple[LowRank, float]:
        exact = self._is_exact(module)
        if exact and module.rank == module.size.rank:
            return module.kind.exact(module.tensors), 0.0
        rank = min(module.rank, self.svd_rank or module.rank)
        found, error = module.kind.nearest(module.tensors, rank)
        return _signed(found), 0.0 if exact else error

    def _overflow(self, module: Module) -> LoraFileError:
        return LoraFileError(
            f"the factors at {module.key} have products that float32 cannot hold",
            where=self.where,
            advice="The training diverged or the file is damaged; choose another checkpoint",
        )

    def keep(self, conversion: Conversion, layers: Sequence[LayerName], scale: float) -> None:
        """Put down that these layers came from one converted module, whose alpha gave `scale`."""
        norm = conversion.norm * scale
        self.conversions.append(replace(conversion, layers=tuple(layers), norm=norm))


def _bytes(modules: Sequence[Module]) -> int:
    """What the exact factors of these take, in float32."""
    return 4 * sum(one.rank * one.per_rank for one in modules)


def _signed(of: LowRank) -> LowRank:
    """The same update with the largest entry of each row of A positive, on every machine."""
    rows = of.down.flatten(1)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True)).flatten()
    signs = torch.where(largest < 0, -1.0, 1.0)
    down = of.down * signs.view(-1, *(1 for _ in of.down.shape[1:]))
    return LowRank(down, of.up * signs.view(1, -1, *(1 for _ in of.up.shape[2:])))
