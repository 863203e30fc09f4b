"""Replay by hand: the dense ΔW of every layer, set or added anew before each call."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.naive_bundle import Spec, gates


def layer(root: nn.Module, path: str) -> Any:
    """A layer by its path, also inside PEFT's wrapper."""
    module = root.get_submodule(path)
    return getattr(module, "base_layer", module)


def delta(spec: Spec, position: int, count: int) -> Tensor:
    """Σ g·ΔW of a layer at this position."""
    both = zip(gates(spec, position, count), spec.deltas, strict=True)
    return torch.stack([gate * one for gate, one in both]).sum(0)


@contextmanager
def by_weights(
    root: nn.Module, specs: list[Spec], positions: Sequence[int], count: int | None = None
) -> Generator[None]:
    """Set every weight to W0 + ΔW before each call: the k-th call is at the k-th position."""
    modules = [layer(root, spec.module) for spec in specs]
    kept = [module.weight.detach().clone() for module in modules]
    calls = iter(positions)

    def before(*_: Any) -> None:
        position = next(calls)
        for spec, module, weight in zip(specs, modules, kept, strict=True):
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            module.weight.data = (wide + delta(spec, position, count or len(positions))).to(
                weight.dtype
            )

    handle = root.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
        for module, weight in zip(modules, kept, strict=True):
            module.weight.data = weight


@contextmanager
def by_branches(
    root: nn.Module, specs: list[Spec], positions: Sequence[int], count: int | None = None
) -> Generator[None]:
    """Add ΔW·x beside every layer: the k-th call is at the k-th position."""
    calls, now = iter(positions), [0]

    def before(*_: Any) -> None:
        now[0] = next(calls)

    def after(spec: Spec) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            update = delta(spec, now[0], count or len(positions)).to(output.device)
            x = args[0].float()
            if isinstance(module, nn.Conv2d):
                where: Any = (module.stride, module.padding, module.dilation)
                branch = functional.conv2d(x, update, None, *where)
            else:
                branch = functional.linear(x, update)
            return (output.float() + branch).to(output.dtype)

        return add

    handles = [root.register_forward_pre_hook(before)]
    handles += [layer(root, spec.module).register_forward_hook(after(spec)) for spec in specs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
