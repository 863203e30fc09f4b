"""How alike live decisions are: from run to run, between guidance halves, and to a static plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.plan import CONTENT, STYLE
from .votes import NONE, Votes


@dataclass(frozen=True)
class Agreement:
    """How input-dependent live decisions are; 1 where the input does not matter.

    Two runs are compared decision by decision: of the same layer at the same progress, in the same
    call at it, for the same sample of that call. Each share is one of pairs of runs in one such
    place, and the figure its mean over all places where a pair has decided. None without pairs.

    Attributes:
        runs: Share of all pairs of runs (prompt × seed) that decide alike.
        within: The same of pairs with one prompt and different seeds.
        between: The same of pairs with different prompts, the seeds equal or not.
        halves: Share of the calls with two samples, the halves of classifier-free guidance, where
            a layer decides alike for both; 1 by definition with the scope `batch`. None where a
            pipeline does without guidance, or calls its denoiser once for each half.
    """

    runs: float | None
    within: float | None
    between: float | None
    halves: float | None


def agreement(votes: Votes, prompts: Sequence[int]) -> Agreement:
    """How alike the decisions of different runs are.

    Args:
        votes: Of these runs.
        prompts: Which prompt each run had, by any number.
    """
    alike, pairs = _pairs(votes.choices)
    mine = torch.tensor(prompts)
    each = [_pairs(votes.choices[mine == prompt]) for prompt in sorted(set(prompts))]
    same = [torch.stack(part).sum(0) for part in zip(*each, strict=True)]
    return Agreement(
        runs=_share(alike, pairs),
        within=_share(*same),
        between=_share(alike - same[0], pairs - same[1]),
        halves=_halves(votes.choices),
    )


def followed(votes: Votes, plan: Tensor) -> float:
    """Share of all live decisions that a plan, `[layers, bins]`, repeats."""
    at = plan[:, votes.bins(plan.shape[1])][None, :, :, None, None]
    return float((votes.choices == at).sum() / (votes.choices != NONE).sum())


def _pairs(choices: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of runs that decide alike, and pairs that decide at all; runs are the first axis."""
    counts = torch.stack([(choices == source).sum(0) for source in (CONTENT, STYLE)])
    total = counts.sum(0)
    return (counts * (counts - 1) // 2).sum(0), total * (total - 1) // 2


def _share(alike: Tensor, pairs: Tensor) -> float | None:
    there = pairs > 0
    return float((alike[there] / pairs[there]).double().mean()) if there.any() else None


def _halves(choices: Tensor) -> float | None:
    calls = choices.flatten(0, -2)
    both = calls[(calls != NONE).sum(1) == 2]
    return float((both[:, 0] == both[:, 1]).double().mean()) if len(both) else None
