"""The ways to apply two LoRAs, each a context manager that puts everything back.

What they cost is compared, so each is written as somebody would who has that way only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...runtime import Bundle
from ...runtime.modes import Mode
from ...runtime.plan import CONTENT, STYLE
from .layers import dense
from .peft import adapters
from .recompute import recomputed


@dataclass(frozen=True)
class Way:
    """One row of the table.

    Attributes:
        key: Its name in JSON.
        label: Its name in the table.
        on: Applies a bundle to a pipeline until the end of a `with` block.
        switches: Whether it changes something while an image is painted.
        staged: Whether what it keeps is this benchmark's and no memory that the way needs.
    """

    key: str
    label: str
    on: Callable[[Bundle, Any], AbstractContextManager[object]]
    switches: bool = False
    staged: bool = False


@contextlib.contextmanager
def floor(bundle: Bundle, pipe: Any) -> Generator[None]:  # noqa: ANN401 - any pipeline
    """Weights set once, by hand, to W0 + ΔW of the content: nothing can be faster.

    Raises:
        AttachError: A weight is not dense.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for layer, weight in dense(bundle, pipe):
            A, B = (
                factor.flatten(1)
                for factor in bundle.factors(layer, CONTENT, weight.device, torch.float32)
            )
            # Copies on the CPU: a model into which a LoRA was fused has none on the card.
            kept.append((weight, weight.to("cpu", copy=True)))
            weight.copy_(torch.addmm(weight.flatten(1).float(), B, A).view(weight.shape))
        yield
    finally:
        for weight, original in kept:
            weight.copy_(original)


def attached(
    mode: Mode,
    **overrides: Any,  # noqa: ANN401 - as attach takes them
) -> Callable[[Bundle, Any], AbstractContextManager[object]]:
    """Replay, without guidance: what that costs depends on its encoders, not on the LoRAs."""
    return lambda bundle, pipe: bundle.attach(pipe, mode, guidance=False, **overrides)


_OTHERS = (
    Way("base", "base model alone", lambda bundle, pipe: contextlib.nullcontext()),
    Way("floor", "one LoRA, fused (the floor)", floor, staged=True),
    Way("peft_one", "PEFT, one adapter", lambda b, pipe: adapters(b, pipe, (CONTENT,))),
    Way("peft_two", "PEFT, two adapters", lambda b, pipe: adapters(b, pipe, (CONTENT, STYLE))),
)
WAYS = (
    *_OTHERS,
    Way("fused", "lorabake, fused", attached("fused"), switches=True),
    Way("hooks", "lorabake, hooks", attached("hooks"), switches=True),
    Way("recomputed", "K-LoRA in every layer call", recomputed),
)
LIVE = (
    *_OTHERS,
    Way("live", "lorabake, live", attached("live"), switches=True),
    Way("live_256", "lorabake, live, 256 tokens", attached("live", tokens=256), switches=True),
)
"""For bundles that choose live."""
