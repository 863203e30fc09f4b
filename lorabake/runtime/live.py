"""Live replay: each sample's own features choose between content and style, in every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ballot import Ballot
from .compiled import fastest
from .divergence import differences
from .hooked import Hooked
from .patch import Gates, Read
from .selection import Selection
from .target import Target

_BLOCK = 1 << 17
"""Elements looked at together on a CPU, few enough for its caches."""


class Voter(Hooked):
    """A branch of both sources, of which each sample lets one through (arXiv 2602.15539, FLS).

    Content is chosen where d_c ≥ d_s, a tie included. What is chosen is a matter of the features
    alone; the strengths act on top.

    Args:
        target: The layer.
        read: Reads its factors.
        ranks: Of content and style, both greater than 0.
        dtype: What the branch computes in.
        selection: How it chooses.
        ballot: Of its denoiser, where it writes down what it chose.
        name: Its own in the ballot.
    """

    mode = "live"

    def __init__(
        self,
        target: Target,
        read: Read,
        ranks: tuple[int, ...],
        dtype: torch.dtype,
        selection: Selection,
        ballot: Ballot,
        name: str,
    ) -> None:
        super().__init__(target, read, sum(ranks), dtype)
        self._ranks, self._selection = ranks, selection
        self._ballot, self._row = ballot, ballot.row(name)
        self._rows_each = 1
        self._spatial = isinstance(self.module, nn.Conv2d)

    def _apply(self, gates: Gates) -> None:
        super()._apply((1.0, 1.0))
        # For content and for style: what each row of A·x is multiplied with.
        rows = [[g] * r for g, r in zip(gates, self._ranks, strict=True)]
        both = [[*rows[0], *(0.0 for _ in rows[1])], [*(0.0 for _ in rows[0]), *rows[1]]]
        self._passing = self._down.new_tensor(both)

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        inner = self._inner(module, args, kwargs)
        with torch.no_grad():
            gates = self._decide(inner.detach(), output.detach())
        return self._sum(module, output, inner * gates)

    def _decide(self, inner: Tensor, F: Tensor) -> Tensor:
        """The gate of each row of B, as a factor on A·x."""
        samples = self._samples(len(inner))
        margin = self._margin(inner, F, samples)
        if self._selection.scope == "batch":
            margin = margin.mean(0, keepdim=True).expand(samples)
        style = (margin < 0).long()
        if self._ballot.open:
            self._ballot.chosen[self._row].copy_(style)
        gates = self._passing.to(inner.device)[style].repeat_interleave(len(inner) // samples, 0)
        ones = [1] * (inner.ndim - 2)
        rank = gates.shape[1]
        return gates.view(len(gates), *([rank, *ones] if self._spatial else [*ones, rank]))

    def _samples(self, rows: int) -> int:
        """Of how many samples these rows are."""
        if not self._ballot.open:
            # Gradient checkpointing computes a call once more, when others have come since.
            return max(1, rows // self._rows_each)
        # What does not divide is shared by all samples, such as an embedding of positions.
        samples = 1 if rows % self._ballot.samples else self._ballot.samples
        self._rows_each = rows // samples
        return samples

    def _margin(self, inner: Tensor, F: Tensor, samples: int) -> Tensor:
        """Mean of d_c − d_s over each sample's tokens, float32 or wider `[samples]`."""
        channels, along = (1, 2) if self._spatial else (2, 1)
        h, base = (self._spread(self._tokens(x), along, samples) for x in (inner, F))
        rows, count = len(base), base.shape[along]
        step = count
        if base.device.type == "cpu":
            step = max(1, _BLOCK // (rows * base.shape[channels]))
        blocks = zip(h.split(step, along), base.split(step, along), strict=True)
        found = [self._differences(*block, channels).reshape(samples, -1) for block in blocks]
        return torch.stack([part.sum(1) for part in found]).sum(0) / (count * rows // samples)

    def _spread(self, x: Tensor, along: int, samples: int) -> Tensor:
        """The tokens that are looked at."""
        count = x.shape[along]
        wanted = max(1, self._selection.tokens * samples // len(x))
        if self._selection.tokens == 0 or wanted >= count:
            return x
        return x.index_select(along, torch.arange(wanted, device=x.device) * count // wanted)

    def _tokens(self, x: Tensor) -> Tensor:
        """`[rows, tokens, channels]`; of a convolution `[rows, channels, tokens]`."""
        return x.flatten(2) if self._spatial else x.reshape(len(x), -1, x.shape[-1])

    def _differences(self, h: Tensor, F: Tensor, channels: int) -> Tensor:
        B_c, B_s = self._up.flatten(1).split(self._ranks, 1)
        h_c, h_s = h.split(self._ranks, channels)
        deltas = (B_c @ h_c, B_s @ h_s) if self._spatial else (h_c @ B_c.t(), h_s @ B_s.t())
        of = self._selection
        measure = fastest(differences, F.device)
        return measure(F, *deltas, of.criterion, of.temperature, channels)
