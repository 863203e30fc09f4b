"""Live replay: each sample's own features choose between content and style, in every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ballot import UNKNOWN, UNUSED, Ballot
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
        self._strength: Tensor | None = None
        self._spatial = isinstance(self.module, nn.Conv2d)

    def _apply(self, gates: Gates) -> None:
        super()._apply((1.0, 1.0))
        sides = [[i] * rank for i, rank in enumerate(self._ranks)]
        strength = [gates[i] for side in sides for i in side]
        # For content and for style: which rows of A·x are let through, and how strongly.
        self._strength = None if gates == (1.0, 1.0) else self._down.new_tensor(strength)
        wanted = [[i == side and gates[i] != 0 for x in sides for i in x] for side in (0, 1)]
        self._passing = torch.tensor(wanted, device=self._down.device)

    def _add(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        inner = self._inner(module, args, kwargs)
        with torch.no_grad():
            passing = self._decide(inner.detach(), output.detach())
        # Not a product with 0, which infinity would survive.
        inner = torch.where(passing, inner, 0)
        if self._strength is not None:
            ones = inner.ndim - 2 if self._spatial else 0
            inner = inner * self._strength.to(inner).view(-1, *[1] * ones)
        return self._sum(module, output, inner)

    def _decide(self, inner: Tensor, F: Tensor) -> Tensor:
        """Which rows of A·x are let through: bool, as `inner` but for tokens."""
        groups = self._groups(inner)
        margin = self._margin(inner, F, groups)
        ballot = self._ballot
        row = ballot.chosen[self._row] if ballot.open else margin.new_zeros(groups)
        whole = groups in (1, len(row)) or self._selection.scope == "batch"
        settled = fastest(settle, F.device)
        votes, passing = settled(
            margin, self._passing.to(F.device), row, whole, self._selection.scope == "batch"
        )
        if ballot.open:
            row.copy_(votes)
        passing = passing.repeat_interleave(len(inner) // groups, 0)
        ones = [1] * (inner.ndim - 2)
        rank = passing.shape[1]
        return passing.view(len(passing), *([rank, *ones] if self._spatial else [*ones, rank]))

    def _groups(self, inner: Tensor) -> int:
        """How many decide: the samples, where it is known which rows are theirs."""
        rows, samples = len(inner), self._ballot.samples
        if not self._ballot.open:
            # Gradient checkpointing computes a call once more, when others have come since.
            return max(1, rows // self._rows_each)
        known = rows == samples or (inner.ndim > 2 and rows % samples == 0)  # frames, for example
        # What all samples share is one row; of others nobody knows whose they are.
        groups = samples if known else rows
        self._rows_each = rows // groups
        return groups

    def _margin(self, inner: Tensor, F: Tensor, groups: int) -> Tensor:
        """Mean of d_c − d_s over each group's tokens, float32 or wider `[groups]`."""
        channels, along = (1, 2) if self._spatial else (2, 1)
        h, base = (self._tokens(x, groups) for x in (inner, F))
        count = base.shape[along]
        counting = self._ballot.masks.get(count) if groups == self._ballot.samples else None
        if 0 < (wanted := self._selection.tokens) < count:
            spread = torch.arange(wanted, device=F.device) * count // wanted
            h, base = h.index_select(along, spread), base.index_select(along, spread)
            counting = counting[:, spread.to(counting.device)] if counting is not None else None
            count = wanted
        step = count
        if base.device.type == "cpu":
            step = max(1, _BLOCK // (groups * base.shape[channels]))
        blocks = zip(h.split(step, along), base.split(step, along), strict=True)
        found = torch.cat([self._differences(*block, channels) for block in blocks], 1)
        if counting is None or self._spatial:
            return found.mean(1)
        counting = counting.to(found.device)
        return found.where(counting, 0).sum(1) / counting.sum(1).clamp(min=1)

    def _tokens(self, x: Tensor, groups: int) -> Tensor:
        """`[groups, tokens, channels]`; of a convolution `[groups, channels, tokens]`."""
        if not self._spatial:
            return x.reshape(groups, -1, x.shape[-1])
        rows = x.flatten(2)
        each = len(rows) // groups
        return rows if each == 1 else rows.unflatten(0, (groups, each)).transpose(1, 2).flatten(2)

    def _differences(self, h: Tensor, F: Tensor, channels: int) -> Tensor:
        B_c, B_s = self._up.flatten(1).split(self._ranks, 1)
        h_c, h_s = h.split(self._ranks, channels)
        deltas = (B_c @ h_c, B_s @ h_s) if self._spatial else (h_c @ B_c.t(), h_s @ B_s.t())
        of = self._selection
        measure = fastest(differences, F.device)
        return measure(F, *deltas, of.criterion, of.temperature, channels)


def settle(
    margin: Tensor, passing: Tensor, row: Tensor, whole: bool, together: bool
) -> tuple[Tensor, Tensor]:
    """From margins to choices.

    Args:
        margin: d_c − d_s `[groups]`.
        passing: What content and style let through, bool `[2, ranks]`.
        row: What the ballot has of this call up to now, `[samples]`.
        whole: Whether a choice is one for a whole sample.
        together: Whether all groups decide as one.

    Returns:
        What the ballot is to have, `[samples]`, and what each group lets through.
    """
    if together:
        margin = margin.mean(0, keepdim=True).expand(len(margin))
    style = (margin < 0).long()
    votes = style.to(row.device, row.dtype)
    votes = torch.where(margin.isnan().to(row.device), UNKNOWN, votes)
    if not whole:
        return torch.full_like(row, UNKNOWN), passing[style]
    if len(votes) != len(row):  # one for all
        votes = votes[:1]
    return torch.where(row == UNUSED, votes, UNKNOWN), passing[style]
