"""Pairing: the layers of a content LoRA beside those of a style LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PairError, listed
from .types import LayerName, Lora, LowRank, network_order


@dataclass(frozen=True, eq=False)
class Pair:
    """One layer as the two LoRAs have it; at most one of the two is None."""

    name: LayerName
    content: LowRank | None
    style: LowRank | None

    @property
    def both(self) -> bool:
        """Whether both LoRAs have this layer."""
        return self.content is not None and self.style is not None

    @property
    def columns(self) -> bool:
        """Whether both LoRAs have this layer with a coefficient for each input column."""
        return all(lora is not None and lora.columns is not None for lora in self.loras)

    @property
    def loras(self) -> tuple[LowRank | None, LowRank | None]:
        """Content and style, in stacking order."""
        return (self.content, self.style)

    @property
    def contested(self) -> bool:
        """Whether a method decides between content and style in this layer.

        A layer that only one LoRA has is always taken. Text encoders run once, before there is any
        progress, so both LoRAs' layers are summed there.
        """
        return self.both and not self.name.component.startswith("text_encoder")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ΔW: `(out, in)` or `(out, in, kh, kw)`."""
        source = self.content or self.style
        if source is None:
            raise ValueError(f"{self.name} has no factors")
        return source.shape

    @property
    def ranks(self) -> tuple[int, int]:
        """Content and style rank, 0 where that LoRA has no such layer."""
        return (
            self.content.rank if self.content is not None else 0,
            self.style.rank if self.style is not None else 0,
        )


def common_family(content: Lora, style: Lora) -> str:
    """The base model family of both.

    A LoRA with few layers may fit several families; the other one then decides.

    Raises:
        PairError: There is none.
    """
    for family in (content.family, style.family):
        if all(family in {lora.family, *lora.rivals} for lora in (content, style)):
            return family
    shared = content.rivals & style.rivals
    if shared:
        return min(shared)
    raise PairError(
        f"the content LoRA is for {content.family}, the style LoRA for {style.family}",
        where=f"{content.provenance.name} + {style.provenance.name}",
        advice="Choose two LoRAs that were trained on the same base model, or name the one that "
        "fits both with --family",
    )


def pair(content: Lora, style: Lora) -> tuple[Pair, ...]:
    """Pair two LoRAs by layer name, in network order.

    Raises:
        PairError: The LoRAs belong to two base model families, share no layer, or disagree about
            the shape of one.
    """
    common_family(content, style)
    names = sorted({*content.layers, *style.layers}, key=network_order)
    pairs = tuple(Pair(name, content.layers.get(name), style.layers.get(name)) for name in names)
    if not any(p.both for p in pairs):
        raise PairError(
            "the two LoRAs have no layer in common "
            f"(content has {listed([str(n) for n in content.layers], 2)}; "
            f"style has {listed([str(n) for n in style.layers], 2)})",
            where=f"{content.provenance.name} + {style.provenance.name}",
            advice="Check that both were trained on the same base model and kind of layers",
        )
    unequal = [
        f"{p.name} {p.content.shape} against {p.style.shape}"
        for p in pairs
        if p.content is not None and p.style is not None and p.content.shape != p.style.shape
    ]
    if unequal:
        raise PairError(
            f"layer shapes differ: {listed(unequal)}",
            where=f"{content.provenance.name} + {style.provenance.name}",
            advice="They were trained on two different base models; choose LoRAs of the same one",
        )
    return pairs
