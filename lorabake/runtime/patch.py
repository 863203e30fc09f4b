"""What the two ways to add a layer's update, Σ g_i·B_i·A_i, have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import AttachError
from .target import Target

Pair = tuple[Tensor, Tensor]
"""(A, B): `[r, in]` or `[r, in, kh, kw]`, and `[out, r]` or `[out, r, 1, 1]`; r may be 0."""

Read = Callable[[int], Pair]
"""Reads a layer's factors of one source, as they are in the file."""

Gates = tuple[float, ...]


class Uncopyable:
    """Hangs on a module as a hook: a copy of the module would share it, so there is none."""

    def __reduce_ex__(self, protocol: object) -> Any:  # noqa: ANN401 - never returns
        raise AttachError(
            "a model cannot be pickled or copied while a bundle is attached to it",
            advice="Detach it first, or save the base weights with save_pretrained",
        )


class Patch(Uncopyable, ABC):
    """One layer's update: put in, changed with the selection, taken away without a trace."""

    mode: ClassVar[str]

    def __init__(self, target: Target, read: Read) -> None:
        self.target, self.module, self.read = target, target.module, read
        self._gates: Gates | None = None
        self._ready: dict[int, Pair] = {}

    def set(self, gates: Gates) -> None:
        """Let the layer compute W0·x + Σ g_i·B_i·A_i·x."""
        if gates != self._gates:
            self._gates = None  # unknown, should the next line fail half-way
            self._apply(gates)
            self._gates = gates

    def refit(self, dtype: torch.dtype) -> None:
        """Follow a pipeline that was moved to another dtype, and apply the same gates again."""
        gates, self._gates = self._gates, None
        self._ready.clear()
        self._load(dtype)
        if gates is not None:
            self.set(gates)

    def tensors(self) -> list[Tensor]:
        """What it holds of the LoRAs."""
        return [factor for pair in self._ready.values() for factor in pair]

    def kept(self) -> list[Tensor]:
        """What it holds of the base model."""
        return []

    @abstractmethod
    def remove(self) -> None:
        """Leave the layer as it was, bit for bit."""

    @abstractmethod
    def _load(self, dtype: torch.dtype) -> None:
        """Make the layer's tensors, in this dtype."""

    @abstractmethod
    def _form(self, A: Tensor, B: Tensor) -> Pair:
        """The factors in the form in which they are kept."""

    @abstractmethod
    def _apply(self, gates: Gates) -> None: ...

    def _live(self, gates: Gates, device: torch.device) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(g, A, B) of the sources that add something, read when they are first needed there."""
        for source, gate in enumerate(gates):
            if gate == 0:
                continue
            if source not in self._ready or self._ready[source][0].device != device:
                A, B = self.read(source)
                self._ready[source] = self._form(A.to(device), B.to(device))
            if self._ready[source][0].shape[0] > 0:
                yield gate, *self._ready[source]
