"""What a fusion method is: from paired layers and parameters to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import PairError
from ..lora.pairs import Pair
from ..runtime.guidance import Guidance
from ..runtime.plan import Constant, Plan, Scale, Threshold
from ..runtime.selection import Selection

Columns = tuple[Tensor, Tensor]
"""Coefficients of one layer, (m_c, m_s), `[in]` each, float32 on the CPU."""


@dataclass(frozen=True)
class Context:
    """Where and with what a method works.

    Attributes:
        device: Where to compute; factors may be anywhere.
        tell: Called as `tell(stage, done, total)` while a method works.
        detail: Called with figures of the moment, such as the parts of a loss.
        base: Base model, a folder or a hub id; None if none was given.
        checkpoint: Where unfinished work may be kept.
        resume: Whether to go on from there.
        force: Whether unfinished work there may be lost.
        identity: What the LoRAs and the base are, so that nobody else's work is resumed.
    """

    device: torch.device
    tell: Callable[[str, int, int], None] = lambda stage, done, total: None
    detail: Callable[[str], None] = lambda figures: None
    base: str | Path | None = None
    checkpoint: Path | None = None
    resume: bool = False
    force: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A callback `(done, total)` for one stage."""
        return partial(self.tell, name)


@dataclass(frozen=True)
class Fused:
    """What a method hands on.

    Attributes:
        plan: One rule per pair that goes into the bundle, in their order.
        strengths: Factor of (content, style) that is multiplied into the stored factors, so that
            every loader applies it; `direct` puts (w_c, w_s) here.
        notes: Figures for the report, for example gamma; JSON values only.
        columns: Coefficients per pair, None where all are 1; None if no layer has any.
        warnings: What the user should know about the result, a sentence each.
        checkpoint: Unfinished work that is not needed any more once the bundle is written.
        selection: How the plan's `Live` layers choose; None if there are none.
        guidance: What guides the latents; None for nothing.
        pairs: What goes into the bundle where the method leaves some out; None for all that came.
    """

    plan: Plan
    strengths: tuple[float, float] = (1.0, 1.0)
    notes: dict[str, float] | None = None
    columns: tuple[Columns | None, ...] | None = None
    warnings: tuple[str, ...] = ()
    checkpoint: Path | None = None
    selection: Selection | None = None
    guidance: Guidance | None = None
    pairs: tuple[Pair, ...] | None = None


class Method(Protocol):
    """One fusion method. Each module in `methods/` has one, as `METHOD`."""

    name: str
    summary: str
    params: type[Any]
    """A frozen dataclass of the parameters and their defaults; `RecipeError` on bad values."""

    def fuse(
        self,
        pairs: Sequence[Pair],
        params: Any,  # noqa: ANN401 - of the type that `params` names
        context: Context,
    ) -> Fused:
        """Decide the plan. Numeric work runs on the context's device."""
        ...


def compared(pairs: Sequence[Pair], scores: Sequence[tuple[float, float]], scale: Scale) -> Fused:
    """The plan in which a layer's scores decide, as in K-LoRA (arXiv 2502.18461, eq. 10).

    Args:
        pairs: All layers.
        scores: Of content and style, for each contested pair in turn.
        scale: S'(p), gamma in it.
    """
    queue = iter(scores)
    rules = tuple(Threshold(next(queue)) if pair.contested else BOTH for pair in pairs)
    chosen = len(scores)
    notes = {"gamma": scale.gamma, "layers_chosen": float(chosen),
             "layers_summed": float(len(pairs) - chosen)}  # fmt: skip
    return Fused(Plan(rules, scale), notes=notes)


BOTH = Constant((1.0, 1.0))
"""The rule of a layer that no method decides about: all that is there, all the time."""


def contested(pairs: Sequence[Pair]) -> list[Pair]:
    """The layers where a method chooses content or style.

    Raises:
        PairError: There are none.
    """
    found = [pair for pair in pairs if pair.contested]
    if not found:
        raise PairError(
            "the two LoRAs share no layer of the denoiser, so there is nothing to choose",
            advice="Use the method direct, or two LoRAs that both change the denoiser",
        )
    return found
