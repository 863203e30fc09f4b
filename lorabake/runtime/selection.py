"""Feature-level selection: how layers choose live (arXiv 2602.15539, reconstructed)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Criterion = Literal["kl", "js", "cosine", "dot"]
Scope = Literal["sample", "batch"]

MAX_TOKENS = 1_000_000
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


@dataclass(frozen=True)
class Selection:
    """How the layers with a `Live` rule choose.

    The paper leaves axis, temperature, batch and guidance halves open; these are our choices.

    Attributes:
        criterion: What tells how far a LoRA moves the features F = W0·x: `kl` KL(p_i ‖ p_0) of
            their softmax over channels, `js` the Jensen-Shannon divergence of the same, `cosine`
            1 − cos(F_i, F), `dot` −⟨F_i, F⟩.
        temperature: Of the softmax.
        scope: Who decides together: each `sample` alone (the two halves of classifier-free
            guidance are two samples), or the whole `batch` of a call, by the mean of their d.
        tokens: Tokens (pixels) of each sample that are looked at, evenly spread; 0 is all.
    """

    criterion: Criterion = "kl"
    temperature: float = 1.0
    scope: Scope = "sample"
    tokens: int = 0
