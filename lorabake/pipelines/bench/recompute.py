"""K-LoRA (arXiv 2502.18461) as it was published: decided anew in every call of every layer.

In float32 whatever the base model is in: its LoRAs are trained and saved so, and stay so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import AttachError
from ...runtime import Bundle
from ...runtime.manifest import Layer
from ...runtime.plan import CONTENT, STYLE, Scale, Threshold, gates
from .layers import device, roots, targets

Hook = Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]


class Time:
    """Which step it is: the timesteps that differed since the schedule was set, counted."""

    def __init__(self, pipe: Any, scale: Scale, device: torch.device) -> None:  # noqa: ANN401 - any pipeline
        self.progress = Fraction(0)
        # S'(p), in a tensor so that a compiled graph stays valid.
        self.scale = torch.zeros((), device=device)
        self._pipe, self._scale = pipe, scale
        self._schedule: object = None
        self._last: object = None
        self._firsts: list[int] = []
        self._count = 0

    def tick(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a call of the denoiser."""
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
        if (schedule := self._pipe.scheduler.timesteps) is not self._schedule:
            self._schedule, self._count = schedule, 0
            runs = torch.unique_consecutive(schedule.cpu(), return_counts=True)[1]
            self._firsts = (runs.cumsum(0) - runs).tolist()
        elif now != self._last:
            self._count += 1
        self._last = now
        self.progress = Fraction(self._firsts[self._count], len(schedule))
        self.scale.fill_(self._scale.at(self.progress))


@contextlib.contextmanager
def recomputed(bundle: Bundle, pipe: Any) -> Generator[None]:  # noqa: ANN401 - any pipeline
    """Choose between the two LoRAs inside of each layer call.

    Raises:
        AttachError: The bundle is none of K-LoRA.
    """
    scale, k = bundle.manifest.scale, bundle.manifest.params.get("k") or "1x"
    layers = targets(bundle, pipe)
    if scale is None or not any(isinstance(layer.rule, Threshold) for layer, _ in layers):
        raise AttachError(f"the method of this bundle is {bundle.manifest.method}, not klora")
    denoisers, where = roots(bundle, pipe), device(bundle, pipe)
    time = Time(pipe, scale, where)
    with contextlib.ExitStack() as undo:
        for name in denoisers:
            denoiser: nn.Module = getattr(pipe, name)
            handle = denoiser.register_forward_pre_hook(time.tick, prepend=True, with_kwargs=True)
            undo.callback(handle.remove)
        for layer, module in layers:
            factors = [bundle.factors(layer, i, where, torch.float32) for i in (CONTENT, STYLE)]
            hook = _hook(layer, factors, time, k)
            undo.callback(module.register_forward_hook(hook).remove)
        yield


def _hook(layer: Layer, factors: list[tuple[Tensor, Tensor]], time: Time, k: int | str) -> Hook:
    matrices = [(down.flatten(1), up.flatten(1)) for down, up in factors]
    shape = factors[CONTENT][0].shape[1:]
    entries = matrices[CONTENT][1].shape[0] * shape.numel()
    wanted = k if isinstance(k, int) else round(Fraction(k.removesuffix("x")) * prod(layer.ranks))
    K = min(max(1, wanted), entries)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        content, style = (B @ A for A, B in matrices)
        if isinstance(layer.rule, Threshold):
            delta = torch.where(_top(content, K) >= _top(style, K) * time.scale, content, style)
        else:  # a layer that one LoRA lacks, or that another method decides about
            g_c, g_s = gates(layer.rule, None, time.progress)
            delta = g_c * content + g_s * style
        x: Tensor = args[0].float()
        if isinstance(module, nn.Conv2d):
            kernel = delta.view(-1, *shape)
            added = module._conv_forward(x, kernel, None)  # pyright: ignore[reportPrivateUsage]
        else:
            added = functional.linear(x, delta)
        return output + added.to(output.dtype)

    return hook


def _top(delta: Tensor, K: int) -> Tensor:
    """Sum of the K largest magnitudes (eqs. 3–6)."""
    return delta.abs().flatten().topk(K).values.sum()
