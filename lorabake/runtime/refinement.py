"""One refinement: the score of x̂_0 and its gradient with respect to x_t."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Keeps small gradients from vanishing in half precision; a power of two changes no digit.
_SCALE = 4096.0

Scored = Callable[[Tensor, Tensor], Tensor]
"""(x_t, the denoiser's output) → R `[n]`."""

Pull = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, the denoiser's output, ∂R/∂output) → what of ∂R/∂x_t goes through the denoiser."""


def look(sample: Tensor, output: Tensor, scored: Scored) -> Tensor:
    """R of each sample `[n]`, without a gradient."""
    with torch.inference_mode(False), torch.no_grad(), _exactly(sample):
        return scored(plain(sample), plain(output))


def gradient(
    sample: Tensor, output: Tensor, scored: Scored, pull: Pull | None
) -> tuple[Tensor, Tensor]:
    """R of each sample `[n]`, and ∇R with respect to x_t.

    The gradient is that of ΣR, whose term of one sample depends on no other.

    Args:
        sample: x_t `[n, …]`, also from inference mode.
        output: The denoiser's, of the same shape.
        scored: R as a function of both, without the denoiser between them.
        pull: For a gradient through the denoiser; None takes its output as constant.

    Returns:
        R, and its gradient like x_t; both in x_t's dtype, at least float32. NaN where R is.
    """
    with torch.inference_mode(False), torch.enable_grad(), _exactly(sample):
        x, out = plain(sample).requires_grad_(), plain(output)
        inputs = [x] if pull is None else [x, out.requires_grad_()]
        score = scored(x, out)
        found = torch.autograd.grad(score.sum() * _SCALE, inputs, materialize_grads=True)
        direct, *rest = (one / _SCALE for one in found)
        score = score.detach()
        if pull is None or not all(one.isfinite().all() for one in (score, *rest)):
            return score, sum(rest, direct)
        return score, direct + pull(x.detach(), out.detach(), *rest)


def plain(x: Tensor) -> Tensor:
    """A tensor's values in float32 or wider, as one that gradients can be taken of."""
    x = x.clone() if x.is_inference() else x.detach()
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _exactly(sample: Tensor) -> torch.autocast:
    """Whatever casts the pipeline runs under."""
    return torch.autocast(sample.device.type, enabled=False)
