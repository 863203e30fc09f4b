"""What the two ways to add a layer's update, Σ g_i·B_i·A_i, have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import AttachError

Factors = Sequence[tuple[Tensor, Tensor]]
"""Each source's (A, B): `[r, in]` or `[r, in, kh, kw]`, and `[out, r]` or `[out, r, 1, 1]`."""

Read = Callable[[], Factors]
"""Reads a layer's factors, as they are in the file."""

Gates = tuple[float, ...]
Patchable = nn.Linear | nn.Conv2d


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

    def __init__(self, module: Patchable, read: Read) -> None:
        self.module, self.read = module, read
        self._gates: Gates | None = None

    @property
    def state(self) -> tuple[torch.dtype, bool]:
        """The weight's dtype, and whether it is gone to where an offloader keeps it."""
        weight = self.module.weight
        return weight.dtype, weight.is_meta

    def set(self, gates: Gates) -> None:
        """Let the layer compute W0·x + Σ g_i·B_i·A_i·x."""
        if gates != self._gates:
            self._gates = None  # unknown, should the next line fail half-way
            self._apply(gates)
            self._gates = gates

    def refit(self, dtype: torch.dtype) -> None:
        """Follow a pipeline that was moved to another dtype, and apply the same gates again."""
        gates, self._gates = self._gates, None
        self._load(dtype)
        if gates is not None:
            self.set(gates)

    @abstractmethod
    def remove(self) -> None:
        """Leave the layer as it was, bit for bit."""

    @abstractmethod
    def _load(self, dtype: torch.dtype) -> None:
        """Read the factors and make them ready for this dtype."""

    @abstractmethod
    def _apply(self, gates: Gates) -> None: ...


def live(gates: Gates, factors: Factors) -> list[tuple[float, Tensor, Tensor]]:
    """(g, A, B) of the sources that add something."""
    pairs = zip(gates, factors, strict=True)
    return [(gate, A, B) for gate, (A, B) in pairs if gate != 0 and A.shape[0] > 0]
