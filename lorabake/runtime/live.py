"""Live replay: each sample's own features choose between content and style, in every call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ballot import SEVERAL, Ballot
from .compiled import fastest
from .divergence import differences
from .hooked import Hooked
from .part import Part
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
        part: For which samples of a call; None for all.
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
        part: Part | None = None,
    ) -> None:
        super().__init__(target, read, sum(ranks), dtype, part)
        self._ranks, self._selection = ranks, selection
        self._ballot, self._row = ballot, ballot.row(name)
        self._rows_each = 1
        self._strengths: Gates = (1.0, 1.0)
        # Where channels and tokens are, see `_tokens`.
        self._channels, self._along = (1, 2) if isinstance(self.module, nn.Conv2d) else (2, 1)

    def _apply(self, gates: Gates) -> None:
        super()._apply((1.0, 1.0))
        self._strengths = gates

    def _add(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        if not output.numel():  # an expert that no token came to
            return output
        inner = self._inner(module, x)
        groups = self._groups(inner)
        h, F = self._tokens(inner, groups), self._tokens(output.detach(), groups)
        counting = self._counting(F)
        if (spread := self._spread(F)) is None:
            content, style = self._deltas(h)
            chosen = self._decide(F, content.detach(), style.detach(), counting)
            c, s = map(scaled, (content, style), self._strengths)
            added = self._shaped(torch.where(chosen, s, c), output)
            return output.add_(added) if self._may_change(output) else output + added.to(output)
        some, of = (x.index_select(self._along, spread) for x in (h.detach(), F))
        counting = None if counting is None else counting[:, spread]
        chosen = self._decide(of, *self._deltas(some), counting)
        c, s = map(scaled, h.split(self._ranks, self._channels), self._strengths)
        let = torch.cat([torch.where(chosen, 0, c), torch.where(chosen, s, 0)], self._channels)
        return self._sum(module, output, self._shaped(let, inner))

    @torch.no_grad()
    def _decide(self, F: Tensor, content: Tensor, style: Tensor, counting: Tensor | None) -> Tensor:
        """Whether each group chooses style, `[groups, 1, 1]`; the ballot is told."""
        margin = self._margin(F, content, style, counting)
        if self._selection.scope == "batch":
            margin = margin.mean(0, keepdim=True).expand(len(margin))
        if self._ballot.open:
            self._tell(margin)
        return (margin < 0)[:, None, None]

    def _tell(self, margin: Tensor) -> None:
        """Write down the margins, of all samples if they are theirs; once in a call."""
        row = self._ballot.margins[self._row]
        if self._selection.scope == "batch":
            margin = margin[:1]
        if len(margin) in (1, len(row)):
            margin = margin.to(row).nan_to_num(SEVERAL, SEVERAL, SEVERAL)
            row.copy_(torch.where(row.isnan(), margin, SEVERAL))
        else:  # of rows that are nobody's
            row.fill_(SEVERAL)

    def _deltas(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Δ_c and Δ_s."""
        B_c, B_s = self._up.flatten(1).split(self._ranks, 1)
        h_c, h_s = h.split(self._ranks, self._channels)
        if self._channels == 1:
            return B_c @ h_c, B_s @ h_s
        return h_c @ B_c.t(), h_s @ B_s.t()

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

    def _counting(self, F: Tensor) -> Tensor | None:
        """Which tokens are no padding, `[groups, tokens]`; None where nobody told."""
        mask = self._ballot.masks.get(F.shape[self._along]) if self._channels == 2 else None
        return mask.to(F.device) if mask is not None and len(mask) == len(F) else None

    def _spread(self, F: Tensor) -> Tensor | None:
        """Which tokens are looked at; None for all."""
        count, wanted = F.shape[self._along], self._selection.tokens
        if not 0 < wanted < count:
            return None
        return torch.arange(wanted, device=F.device) * count // wanted

    def _margin(self, F: Tensor, content: Tensor, style: Tensor, counting: Tensor | None) -> Tensor:
        """Mean of d_c − d_s over each group's tokens, float32 or wider `[groups]`."""
        count, how = F.shape[self._along], self._selection
        measure, step = fastest(differences, F.device), count
        if F.device.type == "cpu":
            step = max(1, _BLOCK * count // F.numel())
        blocks = zip(*(x.split(step, self._along) for x in (F, content, style)), strict=True)
        of = [measure(*x, how.criterion, how.temperature, self._channels) for x in blocks]
        found = torch.cat(of, 1) if len(of) > 1 else of[0]
        if counting is None:
            return found.mean(1)
        return found.where(counting, 0).sum(1) / counting.sum(1).clamp(min=1)

    def _tokens(self, x: Tensor, groups: int) -> Tensor:
        """`[groups, tokens, channels]`; of a convolution `[groups, channels, tokens]`."""
        if self._channels == 2:
            return x.reshape(groups, -1, x.shape[-1])
        rows = x.flatten(2)
        each = len(rows) // groups
        return rows if each == 1 else rows.unflatten(0, (groups, each)).transpose(1, 2).flatten(2)

    def _shaped(self, tokens: Tensor, like: Tensor) -> Tensor:
        """The inverse of `_tokens`."""
        each = len(like) // len(tokens)
        if self._channels == 1 and each > 1:
            tokens = tokens.unflatten(2, (each, -1)).transpose(1, 2).flatten(0, 1)
        return tokens.reshape(like.shape)


def scaled(x: Tensor, gate: float) -> Tensor:
    """g·x, and 0 for g = 0 whatever x is."""
    if gate == 1:
        return x
    return x * gate if gate else torch.zeros_like(x)
