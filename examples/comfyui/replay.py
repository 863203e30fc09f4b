"""Replay of a plan while ComfyUI samples: the chosen LoRA, added beside each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .reading import AttachError, Bundle, Layer, gates
from .targets import Target

HALF = "Set half to both, or use a sampler with one positive and one negative conditioning"
SAME = 1e-4
"""Relative difference up to which two sigmas are one; samplers compute some anew."""


class Branch:
    """One layer's chosen sources, as a forward hook: the output becomes W0·x + Σ g_i·B_i·A_i·x.

    Weights are never touched, so it does not matter where and in which type ComfyUI keeps them.
    Only what is chosen now is held, where the layer computes.
    """

    def __init__(self, bundle: Bundle, layer: Layer, target: Target) -> None:
        self.layer, self.target = layer, target
        self._bundle = bundle
        self._chosen: tuple[float, ...] = ()
        self._parts: Sequence[bool] = (True,)
        self._pair: tuple[Tensor, Tensor] | None = None

    def choose(self, factors: tuple[float, ...], parts: Sequence[bool]) -> None:
        """Let content and style be added, each times its factor, in some parts of the batch."""
        self._parts = parts
        if self._chosen != factors:
            self._chosen, self._pair = factors, None

    def forget(self) -> None:
        """Free the memory; what is needed again is read again."""
        self._pair = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Add the branch to the layer's own, fresh output."""
        if not any(self._chosen):
            return
        x: Tensor = args[0]
        if self._pair is None or self._pair[0].device != x.device or self._pair[0].dtype != x.dtype:
            self._pair = self._read(x)
        if all(self._parts):
            self._add(module, x, output, *self._pair)
            return
        if len(x) % len(self._parts):
            raise AttachError(
                f"{self.layer} sees the samples of all conditionings as one", advice=HALF
            )
        for wanted, rows, into in zip(
            self._parts, x.chunk(len(self._parts)), output.chunk(len(self._parts)), strict=True
        ):
            if wanted:
                self._add(module, rows, into, *self._pair)

    def _add(self, module: nn.Module, x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> None:
        convolution = isinstance(module, nn.Conv2d)
        if self.target.part is not None:
            dimension, start, size = self.target.part
            channels = 1 if convolution else -1
            if dimension == 0:
                output = output.narrow(channels, start, size)
            else:
                x = x.narrow(channels, start, size)
        if convolution:
            # The layer's own stride, padding and dilation, with A as the kernel.
            output += functional.conv2d(module._conv_forward(x, down, None), up)
        else:
            output += functional.linear(functional.linear(x, down), up)

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        chosen = [(i, factor) for i, factor in enumerate(self._chosen) if factor]
        pairs = [(*self._bundle.factors(self.layer, i), factor) for i, factor in chosen]
        down = torch.cat([down for down, _, _ in pairs])
        up = torch.cat([up.float() * factor for _, up, factor in pairs], 1)
        if self.target.function is not None:
            up = self.target.function(up)  # it moves rows of ΔW, which are those of B
        return down.to(x), up.to(x)


class Replay:
    """Wraps each call of the model: choices for its progress, and hooks for as long as it lasts.

    Args:
        bundle: Whose plan it is.
        branches: Its layers that choose.
        strengths: Of content and style.
        start: Progress at the first step of a sampler.
        end: Progress at which its last step ends.
        conditional: Whether the LoRAs act for the positive conditioning alone.
    """

    def __init__(
        self,
        bundle: Bundle,
        branches: Sequence[Branch],
        strengths: tuple[float, float],
        start: Fraction = Fraction(0),
        end: Fraction = Fraction(1),
        *,
        conditional: bool = False,
    ) -> None:
        self._conditional = conditional
        self._bundle, self._branches, self._strengths = bundle, branches, strengths
        self._start, self._end = start, end

    def to(self, where: object) -> Self:
        """ComfyUI calls this on wrappers around each sampling, also after an exception."""
        for branch in self._branches:
            branch.forget()
        return self

    def __call__(
        self,
        model: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor,
        c_concat: Any = None,  # noqa: ANN401 - passed on as it is, like what follows
        c_crossattn: Any = None,  # noqa: ANN401
        control: Any = None,  # noqa: ANN401
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        """The model's prediction with the bundle in it."""
        options = transformer_options or {}
        if (sigmas := options.get("sample_sigmas")) is None:
            raise AttachError(
                "the model was called without `sample_sigmas`, so its progress is unknown",
                where=str(self._bundle.path),
                advice="Use a sampler node that samples the ordinary way",
            )
        done = position(float(sigma.max()), sigmas.tolist())
        progress = self._start + (self._end - self._start) * done
        scale, parts = self._bundle.manifest.scale, self._parts(options)
        for branch in self._branches:
            planned = gates(branch.layer.rule, scale, progress)
            factors = (g * s for g, s in zip(planned, self._strengths, strict=True))
            branch.choose(tuple(factors), parts)
        handles = [b.target.module.register_forward_hook(b) for b in self._branches]
        try:
            return model(x, sigma, c_concat, c_crossattn, control, options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _parts(self, options: dict[str, Any]) -> list[bool]:
        """For each conditioning in the batch of a call whether the LoRAs act: all of equal size."""
        if not self._conditional:
            return [True]
        kinds = options.get("cond_or_uncond")
        # 0 is the positive and 1 the negative one, of guiders that have two.
        if not kinds or max(kinds) > 1:
            raise AttachError(
                "the sampler does not say which conditioning is positive, or has more than two",
                where=str(self._bundle.path),
                advice=HALF,
            )
        return [kind == 0 for kind in kinds]


def position(sigma: float, sigmas: Sequence[float]) -> Fraction:
    """How much of a sampler's run lies before a call: first position of its step / steps.

    A sigma between two steps (second-order samplers) belongs to the one before.

    Args:
        sigma: Of the call.
        sigmas: All of the sampler's, falling; where the last step ends is the last one.
    """
    *steps, _ = sigmas
    now = min((s for s in steps if s >= sigma * (1 - SAME)), default=sigma)
    before = sum(s > now * (1 + SAME) for s in steps)
    return Fraction(before, len(steps))
