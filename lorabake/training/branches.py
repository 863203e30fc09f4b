"""Both LoRAs beside the layers of a pipeline, low-rank, each with a gate per sample."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import PairError, listed
from ..lora.pairs import Pair
from ..runtime.fit import locate
from ..runtime.target import Patchable, Target

Sides = tuple[bool, bool]
"""Whether content, and whether style, acts on a sample."""
Mode = tuple[tuple[Sides, ...], bool]
"""Sides of equal parts of a batch, and whether the coefficients act; no parts: no branch."""
CONTENT, STYLE, BOTH = (True, False), (False, True), (True, True)
NOTHING: Mode = ((), False)


class Branches:
    """Low-rank branches of every layer that the two LoRAs have.

    A layer computes W0·x + B·A·diag(m)·x, where A = [A_c ; A_s] and B = [B_c | B_s] are stacked and
    alpha/rank is folded in; samples on which one LoRA acts use its rows and columns only. diag(m)
    is multiplied into A (rank × in numbers instead of tokens × in), so m costs next to nothing and
    no ΔW is ever formed.

    Args:
        pipe: Any diffusers pipeline; its layers get hooks until `remove`.
        pairs: Layers of the two LoRAs.
        dtype: Of the factors, as the denoiser computes.

    Raises:
        PairError: The pipeline lacks layers, or has them in other shapes.
    """

    def __init__(self, pipe: Any, pairs: Sequence[Pair], dtype: torch.dtype) -> None:  # noqa: ANN401 - any diffusers pipeline
        targets = _targets(pipe, pairs)
        self._mode: Mode = NOTHING
        self.branches = {
            str(pair.name): Branch(target, pair, dtype)
            for pair, target in zip(pairs, targets, strict=True)
        }

    def remove(self, prefix: str = "") -> None:
        """Take the hooks off and forget the layers whose names start like this."""
        for name in [name for name in self.branches if name.startswith(prefix)]:
            self.branches.pop(name).handle.remove()

    @contextlib.contextmanager
    def acting(self, *parts: Sides, zipped: bool = False) -> Generator[None]:
        """Apply the LoRAs inside.

        `acting(CONTENT)` applies content alone to all samples, `acting(CONTENT, STYLE)` content to
        the first half of a batch and style to the second. Afterwards it is as it was before: at
        first, nothing is applied.

        Args:
            parts: Which LoRAs act on equal parts of a batch, in order.
            zipped: Whether the coefficients act as well.
        """
        before = self._mode
        self._set((parts, zipped))
        try:
            yield
        finally:
            self._set(before)

    def _set(self, mode: Mode) -> None:
        self._mode = mode
        for branch in self.branches.values():
            branch.mode = mode


class Branch:
    """The branch of one layer.

    Attributes:
        target: The layer.
        columns: (m_c, m_s), `[in]` each; None is 1.
        mode: What acts now.
    """

    def __init__(self, target: Target, pair: Pair, dtype: torch.dtype) -> None:
        self.target, self.mode = target, NOTHING
        self.columns: tuple[Tensor, Tensor] | None = None
        device = target.module.weight.device
        sources = [source for source in (pair.content, pair.style) if source is not None]
        self._ranks = pair.ranks
        self._down = torch.cat([source.down.to(device, dtype) for source in sources])
        # The scale is folded in before the one rounding to the model's dtype.
        ups = [source.up.to(device, torch.float32) * source.scale for source in sources]
        self._up = torch.cat(ups, 1).to(dtype)
        # Spreads [m_c ; m_s] over the rows of A.
        self._spread = torch.eye(2, device=device).repeat_interleave(
            torch.tensor(pair.ranks, device=device), 0
        )
        self.handle = target.module.register_forward_hook(self._add, with_kwargs=True)

    def _add(
        self, module: Patchable, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        parts, zipped = self.mode
        if not parts:
            return output
        x: Tensor = (args[0] if args else kwargs["input"]).to(self._down.dtype)
        down = self._down if self.columns is None or not zipped else self._zipped(self.columns)
        pieces = zip(x.chunk(len(parts)), output.chunk(len(parts)), parts, strict=True)
        added = [self._part(module, *piece, down) for piece in pieces]
        return added[0] if len(added) == 1 else torch.cat(added)

    def _zipped(self, columns: tuple[Tensor, Tensor]) -> Tensor:
        """A·diag(m), computed in the coefficients' dtype."""
        m = torch.stack(columns)
        rows = self._spread.to(m) @ m
        rows = rows.view(*rows.shape, *(1 for _ in self._down.shape[2:]))
        return (self._down * rows).to(self._down.dtype)

    def _part(
        self, module: Patchable, x: Tensor, output: Tensor, sides: Sides, down: Tensor
    ) -> Tensor:
        content, style = self._ranks
        rows = slice(0 if sides[0] else content, content + style if sides[1] else content)
        if rows.start == rows.stop:
            return output
        A, B = down[rows], self._up[:, rows]
        if isinstance(module, nn.Conv2d):
            # The layer's own stride, padding, padding mode and dilation, with A as the kernel.
            inner = module._conv_forward(x, A, None)  # pyright: ignore[reportPrivateUsage]
            return output + functional.conv2d(inner, B).to(output.dtype)
        inner = functional.linear(x, A).flatten(0, -2)
        if output.dtype != inner.dtype:
            return output + functional.linear(inner, B).view(output.shape).to(output.dtype)
        return torch.addmm(output.flatten(0, -2), inner, B.t()).view(output.shape)


def _targets(pipe: Any, pairs: Sequence[Pair]) -> list[Target]:  # noqa: ANN401 - as above
    parts = {name: getattr(pipe, name, None) for name in {pair.name.component for pair in pairs}}
    roots = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    layers = [(pair.name.component, pair.name.module, pair.shape) for pair in pairs]
    found, wrong = locate(roots, layers, "the LoRAs")
    if wrong:
        raise PairError(
            f"{len(wrong)} of {len(pairs)} layers do not fit the base model: {listed(wrong, 3)}",
            where=str(getattr(pipe, "name_or_path", None) or type(pipe).__name__),
            advice="Name the base model that the LoRAs were trained on",
        )
    return found
