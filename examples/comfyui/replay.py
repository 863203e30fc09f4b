"""Replay of a plan while ComfyUI samples: the chosen LoRA, added beside each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional

from .reading import AttachError, Bundle, Layer, select
from .targets import Target

SAME = 1e-4
"""Relative difference up to which two sigmas are one; samplers compute some anew."""


class Branch:
    """One layer's chosen source, as a forward hook: the output becomes W0·x + g·B·A·x.

    Weights are never touched, so it does not matter where and in which type ComfyUI keeps them.
    Only the source that is chosen now is held, where the layer computes.
    """

    def __init__(self, bundle: Bundle, layer: Layer, target: Target) -> None:
        self.layer, self.target = layer, target
        self._bundle = bundle
        self._chosen: tuple[int, float] | None = None
        self._pair: tuple[Tensor, Tensor] | None = None

    def choose(self, source: int, strength: float) -> None:
        """Let this source (0 content, 1 style) be added, times its strength."""
        if self._chosen != (source, strength):
            self._chosen, self._pair = (source, strength), None

    def forget(self) -> None:
        """Free the memory; what is needed again is read again."""
        self._pair = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Add the branch to the layer's own, fresh output."""
        if self._chosen is None or self._chosen[1] == 0:
            return
        x: Tensor = args[0]
        if self._pair is None or self._pair[0].device != x.device or self._pair[0].dtype != x.dtype:
            self._pair = self._read(x)
        down, up = self._pair
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
        source, strength = self._chosen or (0, 0.0)
        down, up = self._bundle.factors(self.layer, source)
        up = up.float() * strength
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
    """

    def __init__(
        self,
        bundle: Bundle,
        branches: Sequence[Branch],
        strengths: tuple[float, float],
        start: Fraction = Fraction(0),
        end: Fraction = Fraction(1),
    ) -> None:
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
        scale = self._bundle.manifest.scale
        for branch in self._branches:
            source = select(branch.layer.rule, scale, progress) or 0
            branch.choose(source, self._strengths[source])
        handles = [b.target.module.register_forward_hook(b) for b in self._branches]
        try:
            return model(x, sigma, c_concat, c_crossattn, control, options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()


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
