"""What a fusion method is: from paired layers and parameters to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..lora.pairs import Pair
from ..runtime.plan import Constant, Plan

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` while a method works."""


@dataclass(frozen=True)
class Fused:
    """What a method hands on.

    Attributes:
        plan: One rule per pair, in the pairs' order.
        strengths: Factor of (content, style) that is multiplied into the stored factors, so that
            every loader applies it; `direct` puts (w_c, w_s) here.
        notes: Figures for the report, for example gamma; JSON values only.
    """

    plan: Plan
    strengths: tuple[float, float] = (1.0, 1.0)
    notes: dict[str, float] | None = None


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
        *,
        device: torch.device,
        progress: Progress,
    ) -> Fused:
        """Decide the plan. Numeric work runs on `device`, factors may be anywhere."""
        ...


BOTH = Constant((1.0, 1.0))
"""The rule of a layer that no method decides about: all that is there, all the time."""


def decided(pair: Pair) -> bool:
    """Whether content or style is to be chosen in this layer.

    A layer that only one LoRA has is always taken. Text encoders run once, before there is any
    progress, so both LoRAs' layers are summed there.
    """
    return pair.both and not pair.name.component.startswith("text_encoder")
