"""The denoiser's calls since the last step, and the gradient back through them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import AttachError

# bfloat16 rounds to 0.4 %, several times on the way from the denoiser to the scheduler.
_TOLERANCE = 0.05
_ADVICE = 'Attach with through="latents", or with guidance=False'

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Call(NamedTuple):
    """One call: what went in for the noisy latents, and what came out, with the graph between.

    `resume` puts the layers as they were for it, since parts may be computed again on the way back.
    """

    leaf: Tensor
    output: Tensor
    resume: Callable[[], None]


class Tape:
    """Records calls with gradients inside of a pipeline that runs without."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._leaf: Tensor | None = None
        self._grad = False

    def clear(self) -> None:
        """Let the graphs go."""
        self._calls.clear()
        self._leaf = None

    def open(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Arguments:
        """Before a call: switch gradients on, and give it latents that a gradient can be taken of.

        Raises:
            AttachError: No gradient can be taken of this call.
        """
        name = next(iter(inspect.signature(denoiser.forward).parameters))
        given = args[0] if args else kwargs.get(name)
        if not isinstance(given, Tensor):
            raise AttachError(
                f"{type(denoiser).__name__} is called without one tensor of latents, so no "
                "gradient can go through it",
                advice=_ADVICE,
            )
        if torch.is_inference_mode_enabled():
            raise AttachError(
                "no gradient can go through a denoiser in torch.inference_mode()",
                advice="Run the pipeline under torch.no_grad(), as it does by itself, or attach "
                'with through="latents"',
            )
        self._leaf = (given.clone() if given.is_inference() else given.detach()).requires_grad_()
        self._grad = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        return ((self._leaf, *args[1:]), {**kwargs}) if args else ((), {**kwargs, name: self._leaf})

    def close(self, result: Any, resume: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401 - what a denoiser returns
        """After a call, also a failed one: switch gradients back, and hide the graph in here.

        `resume` puts the layers as they are now, once others have been called.
        """
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return None
        torch.set_grad_enabled(self._grad)
        if result is None:
            return None
        output = result[0]
        self._calls.append(Call(leaf, output, resume))
        if isinstance(result, tuple):
            return (output.detach(), *result[1:])
        result.sample = output.detach()
        return result

    def pull(self, x: Tensor, output: Tensor, cotangent: Tensor) -> Tensor:
        """Σ_g κ_g·a_g·(∂output_g/∂leaf_g)ᵀ·cotangent, the gradient back to x.

        Pipelines make the model output of a step from rows of one or several calls: classifier-free
        guidance, its rescaling and its relatives are Σ_g a_g·output_g of a sample's own rows g,
        i, n + i, … of every call, and the latents of these rows are κ_g·x. Both are found by least
        squares, and hold the constant part of what follows more complicated rules.

        Args:
            x: The scheduler's sample `[n, …]`.
            output: What the scheduler is given as model output, of the same shape.
            cotangent: Of that output, of the same shape.

        Returns:
            Like x.

        Raises:
            AttachError: The output is not such a sum, or the denoiser saw other latents.
        """
        if not self._calls:
            raise AttachError(
                "the denoiser was not called for this step, so no gradient can go through it",
                advice=_ADVICE,
            )
        kappas = [self._kappa(call.leaf, x) for call in self._calls]
        weights = self._weights(x, output)
        found = torch.zeros_like(x)
        start = 0
        for call, kappa in zip(self._calls, kappas, strict=True):
            own = weights[start : (start := start + len(kappa))].to(x)
            # Half precision has neither the range nor the smallness of these numbers.
            largest = cotangent.flatten(1).abs().amax(1)
            scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent)
            given = torch.zeros_like(call.output)
            rows = own[..., None] * (cotangent.flatten(1) * scale[:, None])
            leading(given, x).copy_(rows.reshape(-1, *x.shape[1:]))
            call.resume()
            pulled = _backward(call, given)
            back = _rows(pulled, x).to(x) * (kappa / scale)[..., None].to(x)
            found = found + back.sum(0).reshape(x.shape)
        return found

    def _kappa(self, leaf: Tensor, x: Tensor) -> Tensor:
        """κ `[rows / n, n]` of the rows of a call's latents."""
        rows, own = _rows(leaf.detach(), x).to(_wide(x)), x.flatten(1).to(_wide(x))
        kappa = (rows * own).sum(-1) / own.square().sum(-1)
        if not _close(rows - kappa[..., None] * own, rows):
            raise AttachError(
                "the denoiser was not called with the latents that the scheduler steps from, so "
                "no gradient can go through it",
                advice=_ADVICE,
            )
        return kappa

    def _weights(self, x: Tensor, output: Tensor) -> Tensor:
        """The smallest a that explain the output, `[rows of all calls / n, n]`."""
        rows = torch.cat([_rows(call.output.detach(), x) for call in self._calls])
        A, target = rows.to(_wide(x)).transpose(0, 1), output.flatten(1).to(_wide(x))
        gram, moment = A @ A.mT, A @ target[..., None]
        found = torch.linalg.pinv(gram.cpu(), rtol=1e-12, hermitian=True).to(gram) @ moment
        if not _close(target - (A * found).sum(1), target):
            raise AttachError(
                "what the scheduler is given is no weighted sum of what the denoiser returned, so "
                "no gradient can go through it",
                advice=_ADVICE,
            )
        return found[..., 0].T


def _backward(call: Call, cotangent: Tensor) -> Tensor:
    try:
        return torch.autograd.grad(call.output, call.leaf, cotangent)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise AttachError(
            f"the gradient through the denoiser failed: {str(error).splitlines()[0].rstrip('.:')}",
            advice="It needs the weights as they were in the call, which some kinds of offloading "
            f"and casting take away. {_ADVICE}",
        ) from error


def leading(of: Tensor, x: Tensor) -> Tensor:
    """The channels and tokens of a tensor that x has too: what comes beside follows them.

    Args:
        of: What the denoiser was given, `[n · samples, …]`.
        x: The latents, `[samples, …]`, no larger in any other dimension.

    Raises:
        AttachError: It has fewer, or no number of rows for each sample.
    """
    if of.ndim != x.ndim or of.shape[0] % x.shape[0] or any(map(int.__lt__, of.shape, x.shape)):
        raise AttachError(
            f"latents of shape {list(x.shape)} do not fit the denoiser's {list(of.shape)}",
            advice="Attach with guidance=False",
        )
    return of[(slice(None), *map(slice, x.shape[1:]))]


def _rows(of: Tensor, x: Tensor) -> Tensor:
    """Its leading part `[rows / n, n, numbers]`."""
    return leading(of, x).reshape(-1, x.shape[0], x[0].numel())


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _close(rest: Tensor, whole: Tensor) -> bool:
    return bool((rest.norm(dim=-1) <= _TOLERANCE * whole.norm(dim=-1)).all())
