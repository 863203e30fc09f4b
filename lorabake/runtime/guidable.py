"""Whether a pipeline can be guided: all that is known before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .errors import AttachError
from .guidance import Guidance
from .predicted import prediction
from .score import Encoder, embed

_NAMES = ("clip", "dino")


def through(guidance: Guidance) -> bool:
    """Whether a gradient goes through the denoiser; where m is 0 there is none at all."""
    return guidance.through == "denoiser" and guidance.m != 0


def check_encoders(encoders: object, guidance: Guidance, where: str) -> None:
    """See that there are two encoders that can be called.

    Raises:
        AttachError: There are not.
    """
    given: Mapping[str, Any] = encoders if isinstance(encoders, Mapping) else {}
    lacking = [name for name in _NAMES if not callable(given.get(name))]
    if lacking:
        named = " and ".join(f"{name} ({getattr(guidance, name)})" for name in lacking)
        raise AttachError(
            f"the bundle guides by image encoders, and {named} {_are(lacking)} missing",
            where=where,
            advice="Pass encoders=lorabake.encoders(bundle), or attach with guidance=False",
        )


@torch.inference_mode(False)
def check(
    scheduler: Any,  # noqa: ANN401 - any scheduler
    guidance: Guidance,
    encoders: Mapping[str, Encoder],
    models: Iterable[nn.Module],
    where: str,
) -> None:
    """See that the steps will have what they need.

    Args:
        scheduler: The pipeline's.
        guidance: What the bundle says.
        encoders: By the names `clip` and `dino`.
        models: All that a gradient may have to go through.
        where: The bundle, for messages.

    Raises:
        AttachError: They will not.
    """
    check_scheduler(scheduler, guidance, where)
    for model in models:
        if any(weight.is_inference() for weight in model.parameters()):
            raise AttachError(
                f"no gradient can go through {type(model).__name__}, whose weights were made in "
                "torch.inference_mode()",
                where=where,
                advice="Load it outside of that, or attach with guidance=False",
            )
    with torch.enable_grad():
        for name in _NAMES:
            _try(name, guidance, encoders, where)


def _try(name: str, guidance: Guidance, encoders: Mapping[str, Encoder], where: str) -> None:
    """Embed a grey image; whatever an encoder raises, it cannot be used."""
    advice = "Pass encoders=lorabake.encoders(bundle), or attach with guidance=False"
    try:
        grey = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
        found = embed(grey, guidance, encoders, name)
    except (AttachError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise AttachError(
            f"the {name} encoder cannot embed an image of 64 × 64 pixels "
            f"({type(error).__name__}: {error})",
            where=where, advice=advice,
        ) from error  # fmt: skip
    if not found.isfinite().all():
        raise AttachError(
            f"the {name} encoder gives NaN or Inf for a grey image", where=where, advice=advice
        )


def check_scheduler(scheduler: Any, guidance: Guidance, where: str) -> None:  # noqa: ANN401 - any scheduler
    """See that x̂_0 can be formed, and that its gradient is not 0 from the outset.

    Raises:
        AttachError: It is not so.
    """
    if prediction(scheduler, where) == "sample" and guidance.m != 0 and not through(guidance):
        raise AttachError(
            "the denoiser predicts x̂_0 itself, which without a gradient through the denoiser does "
            "not depend on the latents",
            where=where,
            advice='Attach with through="denoiser", or with guidance=False',
        )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
