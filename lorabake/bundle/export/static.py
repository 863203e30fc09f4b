"""What a layer becomes in a plain LoRA: its sources, each times one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from ...lora.compress import compress
from ...lora.types import LayerName, LowRank
from ...runtime import Bundle
from ...runtime.manifest import Layer
from .loss import Loss, gram, over_time, squared
from .shares import Shares, mean, summed


@dataclass(frozen=True, eq=False)
class Static:
    """One layer of a plain LoRA to come.

    Attributes:
        name: The layer.
        shape: Of its ΔW.
        sources: Which of the bundle's it has.
        rank: Sum of their ranks.
        shares: What the plan says of them.
        read: Reads their factors.
    """

    name: LayerName
    shape: tuple[int, ...]
    sources: tuple[int, ...]
    rank: int
    shares: Shares
    read: Callable[[], list[LowRank]]

    def factors(self, rank: int | None) -> tuple[list[LowRank], Loss, Loss]:
        """Factors to stack, the plan's loss in their mean, and the loss of fewer ranks.

        Args:
            rank: At most; None for as many as there are.
        """
        sources, gates = self.read(), mean(self.shares)
        weighted = [source.scaled(g) for source, g in zip(sources, gates, strict=True)]
        products = gram(sources)
        plan, norm = over_time(products, self.shares), squared(products, gates)
        if rank is None or self.rank <= rank:
            # In one scale: a source that is there for a moment only may be too small for its own.
            kept = weighted if len(self.shares) == 1 else [_joined(weighted)]
            return kept, plan, Loss(0.0, norm)
        low, lost = compress(_joined(weighted), rank)
        return [low], plan, Loss(lost**2 * norm, norm)


def _joined(sources: Sequence[LowRank]) -> LowRank:
    """All of them as one, in float64."""
    return LowRank(
        torch.cat([source.down.double() for source in sources]),
        torch.cat([source.up.double() * source.scale for source in sources], 1),
    )


def planned(bundle: Bundle, layer: Layer, of: Shares) -> Static | None:
    """A layer as the plan has it; without the sources whose gate is always 0, None if all are."""
    kept = [i for i, rank in enumerate(layer.ranks) if rank and any(at[i] for at in of)]
    if not kept:
        return None
    return Static(
        LayerName(layer.component, layer.module),
        bundle.shape(layer),
        tuple(kept),
        sum(layer.ranks[i] for i in kept),
        summed((tuple(at[i] for i in kept), share) for at, share in of.items()),
        lambda: [LowRank(*bundle.factors(layer, i)) for i in kept],
    )


def original(bundle: Bundle, layer: Layer, source: int) -> Static | None:
    """A layer as one source had it, before any strength or column coefficient; None if it had none.

    What was not multiplied is handed on as it is stored.
    """
    if not layer.ranks[source]:
        return None
    read = bundle.original if layer.columns else bundle.factors
    scale = 1 / bundle.manifest.sources[source].strength
    return Static(
        LayerName(layer.component, layer.module),
        bundle.shape(layer),
        (source,),
        layer.ranks[source],
        {(1.0,): Fraction(1)},
        lambda: [replace(LowRank(*read(layer, source)), scale=scale)],
    )
