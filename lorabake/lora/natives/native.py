"""What a native naming is: a model's modules as its authors' own code calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..types import LayerName, LowRank

_NUMBER = re.compile(r"(?<=[._])\d+(?=[._])")


@dataclass(frozen=True, eq=False)
class Native:
    """Names of one model's modules ⇄ diffusers names. Each module in `natives/` has one.

    Attributes:
        family: Whose modules these are.
        modules: Native path → the diffusers modules that it holds, `{}` for the block's number.
            Several are fused by output rows in this order, each as wide as the input; of four the
            last one has the rest.
        ratios: Output rows per input column of modules that another model has under the same name
            in another form.
        sign: What only this model's modules have in their paths, with dots or underscores; None
            where it shares no module with another model.
        swapped: Modules whose two halves of rows, shift and scale, are in the opposite order in
            diffusers; only those with two rows per input column.
    """

    family: str
    modules: Mapping[str, tuple[str, ...]]
    ratios: Mapping[str, Fraction] = field(default_factory=dict[str, Fraction])
    sign: re.Pattern[str] | None = None
    swapped: frozenset[str] = frozenset()

    def find(self, name: str) -> tuple[str, str] | None:
        """The key in `modules` and the block's number, of a path with dots or with underscores.

        `double_blocks.3.img_mlp.0` and `double_blocks_3_img_mlp_0` are both
        (`double_blocks.{}.img_mlp.0`, `3`).
        """
        table = self._dotted if "." in name else self._underscored
        number = _NUMBER.search(name)
        if number is not None:
            pattern = f"{name[: number.start()]}{{}}{name[number.end() :]}"
            if pattern in table:
                return table[pattern], number[0]
        return (table[name], "") if name in table else None

    def home(self, module: str) -> tuple[str, str] | None:
        """`find`, by the diffusers name of a module that it holds."""
        number = _NUMBER.search(module)
        patterns = {module: ""}
        if number is not None:
            patterns[f"{module[: number.start()]}{{}}{module[number.end() :]}"] = number[0]
        for pattern, block in patterns.items():
            if pattern in self._homes:
                return self._homes[pattern], block
        return None

    def place(self, name: str, factors: LowRank) -> dict[LayerName, LowRank] | None:
        """The layers that a module's factors belong to; None if there is no such module."""
        found = self.find(name)
        if found is None:
            return None
        key, number = found
        ratio = self.ratios.get(key)
        rows, width = factors.up.shape[0], factors.down.shape[1]
        if ratio is not None and ratio * width != rows:
            return None
        if key in self.swapped and rows == 2 * width:
            factors = swap(factors)
        modules = [module.format(number) for module in self.modules[key]]
        pieces = cut(factors, len(modules))
        if pieces is None:
            return None
        names = [LayerName("transformer", module) for module in modules]
        return dict(zip(names, pieces, strict=True))

    @cached_property
    def _homes(self) -> dict[str, str]:
        return {module: key for key, modules in self.modules.items() for module in modules}

    @cached_property
    def _dotted(self) -> dict[str, str]:
        return {key: key for key in self.modules}

    @cached_property
    def _underscored(self) -> dict[str, str]:
        return {key.replace(".", "_"): key for key in self.modules}


def swap(factors: LowRank) -> LowRank:
    """The same with the two halves of its output rows in the opposite order."""
    first, second = factors.up.chunk(2)
    return LowRank(factors.down, torch.cat([second, first]), factors.scale, factors.columns)


def cut(factors: LowRank, count: int) -> list[LowRank] | None:
    """Cut ΔW by output rows, which is exact: [B_q; B_k; B_v]·A are three layers that share A.

    Where B is block-diagonal, as in files converted from separate layers, each layer gets back its
    own part of A. None if the rows cannot be cut so.
    """
    if count == 1:
        return [factors]
    sizes = _sizes(factors, count)
    if sizes is None or factors.down.ndim != 2:
        return None
    starts = [sum(sizes[:i]) for i in range(count + 1)]
    ups = [factors.up[start:end] for start, end in pairwise(starts)]
    own, rest = divmod(factors.rank, count)
    columns = [slice(i * own, (i + 1) * own) for i in range(count)]
    if rest == 0 and all(_only(up, piece) for up, piece in zip(ups, columns, strict=True)):
        return [
            LowRank(factors.down[piece], up[:, piece], factors.scale)
            for up, piece in zip(ups, columns, strict=True)
        ]
    return [LowRank(factors.down, up, factors.scale) for up in ups]


def _sizes(factors: LowRank, count: int) -> Sequence[int] | None:
    rows, width = factors.up.shape[0], factors.down.shape[1]
    if count == 4:
        last = rows - 3 * width
        return (width, width, width, last) if last > 0 else None
    return (width,) * count if rows == count * width else None


def _only(up: Tensor, columns: slice) -> bool:
    """Whether B is zero outside these columns; on the meta device it is not known to be."""
    if up.is_meta:
        return False
    return not up[:, : columns.start].any() and not up[:, columns.stop :].any()
