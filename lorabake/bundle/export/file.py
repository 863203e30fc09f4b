"""Writing one plain LoRA file, some modules in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import torch
from torch import Tensor

from ...errors import OutputError
from ...lora.natives.native import swap
from ...lora.parallel import each
from ...lora.types import LayerName, LowRank
from ..header import Entry, head
from ..stack import stack
from .loss import Loss
from .static import Static
from .styles import SUFFIXES, Module, Sheet, To

_AT_ONCE = 16
"""Modules whose tensors are in memory together."""

Losses = dict[LayerName, tuple[Loss, Loss]]
"""Of the plan in its mean, and of fewer ranks, by layer."""


@dataclass(frozen=True, eq=False)
class Sheets:
    """What all files of one plain LoRA share.

    Attributes:
        to: Key style.
        layers: By name.
        rank: What each layer is compressed to; None for none.
        dtype: Of all tensors.
    """

    to: To
    layers: Mapping[LayerName, Static]
    rank: int | None
    dtype: torch.dtype

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The one rank that all layers of a component get: the largest of theirs.

        Several versions of diffusers mis-scale files of mixed rank. Where there is an alpha, which
        is equal to it or three times or four times that, it is one that the dtype can hold.
        """
        found: dict[str, int] = {}
        for layer in self.layers.values():
            component = layer.name.component
            found[component] = max(found.get(component, 1), self.live(layer))
        if SUFFIXES[self.to][2]:
            found = {component: self._held(rank) for component, rank in found.items()}
        return found

    def _held(self, rank: int) -> int:
        alphas = torch.tensor([rank, 3 * rank, 4 * rank], dtype=torch.float64)
        return rank if torch.equal(alphas.to(self.dtype).double(), alphas) else self._held(rank + 1)

    def live(self, layer: Static) -> int:
        """A layer's own rank."""
        return layer.rank if self.rank is None else min(layer.rank, self.rank)

    def write(
        self, file: BinaryIO, sheet: Sheet, metadata: Mapping[str, str], told: Callable[[], None]
    ) -> Losses:
        """Write one of the files; `told` hears of each module when it is done.

        Raises:
            OutputError: Values are too large or too small for the dtype.
        """
        entries = [entry for module in sheet.modules for entry in self._entries(module)]
        file.write(head(entries, self.dtype, metadata))
        losses: Losses = {}
        for start in range(0, len(sheet.modules), _AT_ONCE):
            some = sheet.modules[start : start + _AT_ONCE]
            for tensors in each(
                lambda module: self._tensors(module, losses),
                some, torch.device("cpu"), lambda _done, _total: told(),
            ):  # fmt: skip
                for tensor in tensors:
                    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return losses

    def _entries(self, module: Module) -> list[Entry]:
        down, up, alpha = SUFFIXES[self.to]
        first = self._first(module)
        rank, (_, *width) = self._rank(module), first.shape
        found = [
            Entry(module.stem + down, (rank, *width)),
            Entry(module.stem + up, (sum(module.rows), rank, *(1 for _ in width[1:]))),
        ]
        return [Entry(module.stem + alpha, ()), *found] if alpha else found

    def _tensors(self, module: Module, losses: Losses) -> list[Tensor]:
        """The tensors of a module, in the order of its entries."""
        rank = self.ranks[self._first(module).name.component]
        parts = [self._part(name, rank, losses) for name in module.layers]
        first = next(part for part in parts if part is not None)
        downs, ups = list[Tensor](), list[Tensor]()
        for part, rows in zip(parts, module.rows, strict=True):
            downs.append(part.down if part else torch.zeros_like(first.down))
            ups.append(part.up if part else first.up.new_zeros(rows, rank))
        whole = LowRank(torch.cat(downs), torch.block_diag(*ups) if len(ups) > 1 else ups[0])
        whole = swap(whole) if module.swapped else whole
        alpha = [torch.tensor(whole.rank, dtype=self.dtype)] if SUFFIXES[self.to][2] else []
        return [*alpha, whole.down, whole.up]

    def _part(self, name: LayerName | None, rank: int, losses: Losses) -> LowRank | None:
        if name is None:
            return None
        factors, *lost = self.layers[name].factors(self.rank)
        losses[name] = (lost[0], lost[1])
        try:
            return LowRank(*stack(factors, rank, self.dtype))
        except OutputError as error:
            raise OutputError(error.what, where=str(name), advice=error.advice) from error

    def _first(self, module: Module) -> Static:
        return next(self.layers[name] for name in module.layers if name is not None)

    def _rank(self, module: Module) -> int:
        return self.ranks[self._first(module).name.component] * len(module.layers)
