"""Calibration: second moments of what each layer gets while a LoRA paints."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .branches import CONTENT, Branch
from .problem import Problem

Sigmas = tuple[Tensor, Tensor]
"""E[x xᵀ] under the content prompt and under the style prompt."""


def moments(
    problem: Problem,
    branches: Mapping[str, Branch],
    *,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Callable[[str], Sigmas]:
    """Let the two teachers work on noisy references, and look at their layers' inputs.

    Args:
        problem: Has the teachers.
        branches: The layers to look at, by name.
        draws: Samples of each side, at timesteps of their own; rounded up to whole passes.
        seed: Of timesteps and noise.
        progress: Called as `progress(done, total)`.

    Returns:
        For a layer's name moments `[in, in]`, of a convolution's patches `[in · kh · kw, …]`.
        Layers that get the same tensor, such as a block's queries, keys and values, share them.
    """
    sums = _Sums()
    passes = -(-draws // problem.samples)
    with contextlib.ExitStack() as stack:
        for name, branch in branches.items():
            hook = branch.target.module.register_forward_pre_hook(
                sums.watch(name, branch), with_kwargs=True
            )
            stack.callback(hook.remove)
        for done in range(passes):
            problem.lesson(seed, done * problem.block)
            progress(done + 1, passes)
    return sums.means


class _Sums:
    """Sums of x xᵀ over tokens, per layer and side; one sum for layers that get one tensor."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: dict[str, list[int]] = {}
        self._owner: dict[str, str] = {}
        self._seen: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def means(self, name: str) -> Sigmas:
        owner = self._owner[name]
        pairs = zip(self._sums[owner], self._counts[owner], strict=True)
        content, style = (total / max(1, count) for total, count in pairs)
        return content, style

    def watch(
        self, name: str, branch: Branch
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else kwargs["input"]
            reference, owner = self._seen.get(id(x), (None, name))
            if isinstance(module, nn.Conv2d) or reference is None or reference() is not x:
                owner = name
                self._seen[id(x)] = (weakref.ref(x), name)
            # Layers that share a tensor in the first pass do so in all.
            if self._owner.setdefault(name, owner) == name:
                parts = branch.mode[0]
                for sides, part in zip(parts, x.chunk(len(parts)), strict=True):
                    self._add(name, int(sides != CONTENT), _rows(module, part))

        return look

    def _add(self, name: str, side: int, rows: Tensor) -> None:
        if name not in self._sums:
            zeros = rows.new_zeros(rows.shape[1], rows.shape[1])
            self._sums[name], self._counts[name] = [zeros, zeros.clone()], [0, 0]
        self._sums[name][side].addmm_(rows.T, rows)
        self._counts[name][side] += len(rows)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """Tokens, or patches of a convolution, float32 `[n, in]`."""
    if not isinstance(module, nn.Conv2d):
        return x.float().flatten(0, -2)
    padding = module.padding if isinstance(module.padding, tuple) else (0, 0)
    sizes = (module.kernel_size, module.dilation, padding, module.stride)
    patches = functional.unfold(x.float(), *((size[0], size[1]) for size in sizes))
    return patches.mT.flatten(0, 1)
