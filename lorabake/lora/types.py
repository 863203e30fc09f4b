"""What a LoRA is: named low-rank factors. A delta is never stored, factors are never added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32_MAX = torch.finfo(torch.float32).max
"""What no number of a LoRA may exceed: loaders take no wider dtype."""


class LayerName(NamedTuple):
    """Where a layer lives: pipeline component, then module path inside it (diffusers naming)."""

    component: str
    module: str

    def __str__(self) -> str:
        return f"{self.component}.{self.module}"


@dataclass(frozen=True, eq=False)
class LowRank:
    """The factors of one layer's update, ΔW = scale · up @ (down · diag(columns)).

    Attributes:
        down: A, `[rank, in]` for linear layers, `[rank, in, kh, kw]` for convolutions.
        up: B, `[out, rank]`, or `[out, rank, 1, 1]` beside a convolutional `down`.
        scale: alpha / rank times any user strength, kept apart from the factors so that nothing
            is rounded before a dtype is chosen for the output.
        columns: m, float32 `[in]`: a coefficient for each input column, or input channel of a
            convolution (ZipLoRA, arXiv 2311.13600); None if all are 1.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    columns: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of A, which are the columns of B."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ΔW: `(out, in)` or `(out, in, kh, kw)`."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def bare(self) -> bool:
        """Whether ΔW is up @ down and nothing else: scale and columns are 1."""
        ones = self.columns is None or bool((self.columns == 1).all())
        return ones and self.scale == 1.0

    def weighted(self, dtype: torch.dtype) -> Tensor:
        """A·diag(m), shaped like `down`, computed in `dtype`."""
        down = self.down.to(dtype)
        return down if self.columns is None else down * along(self.columns, down).to(dtype)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dense ΔW of `shape`, computed in `dtype`."""
        product = self.up.to(dtype).flatten(1) @ self.weighted(dtype).flatten(1)
        return (self.scale * product).reshape(self.shape)

    def scaled(self, strength: float) -> LowRank:
        """The same factors with `strength` multiplied into the scale."""
        return replace(self, scale=self.scale * strength)


def along(columns: Tensor, down: Tensor) -> Tensor:
    """`[in]` as `[in]` or `[in, 1, 1]`, to broadcast over the rows and kernel of `down`."""
    return columns.view(-1, *(1 for _ in down.shape[2:]))


@dataclass(frozen=True)
class Provenance:
    """Where a LoRA came from, as far as its file tells.

    Attributes:
        name: File or folder name without suffix, or the hub id.
        sha256: Hex digest of the file's bytes; of two files, that of their digests in a row.
        trigger_words: Words that its training text used for the subject or the style.
        base_model: Name or hub id of the base model that the file names, if any.
        license: Licence that the file names, if any.
    """

    name: str
    sha256: str
    trigger_words: tuple[str, ...] = ()
    base_model: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Conversion:
    """What became of one module that was no plain LoRA.

    Attributes:
        layers: The layers it belongs to; several where a model's own code fuses them.
        kind: What it was, for example `LoHa`.
        exact_rank: Rank of the factors that hold it exactly.
        rank: Rank that it got.
        error: ‖error‖ / ‖ΔW‖ as Frobenius norms; 0 where it is exact.
        norm: ‖ΔW‖.
        dtype: Of its tensors in the file.
    """

    layers: tuple[LayerName, ...]
    kind: str
    exact_rank: int
    rank: int
    error: float
    norm: float
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Lora:
    """One LoRA in canonical form: every tensor of its file is in here, under its diffusers name.

    Attributes:
        layers: Factors by layer, in network order (see `network_order`).
        family: Name of the base model family, one of `families`.
        provenance: Source, digest, trigger words, licence.
        metadata: The file's own `__metadata__`, as it was.
        rivals: Families that the file's few layers do not rule out either.
        conversions: What became of modules that were no plain LoRA.
    """

    layers: Mapping[LayerName, LowRank]
    family: str
    provenance: Provenance
    metadata: Mapping[str, str]
    rivals: frozenset[str] = frozenset()
    conversions: tuple[Conversion, ...] = ()

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """Of the file's tensors: that converted factors are float32 does not make it wider."""
        converted = {layer for done in self.conversions for layer in done.layers}
        own = [f for name, f in self.layers.items() if name not in converted]
        stored = {tensor.dtype for factors in own for tensor in (factors.down, factors.up)}
        return frozenset(stored | {done.dtype for done in self.conversions})


_STAGES = (
    "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer", "transformer_2",
    "conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks",
    "conv_norm_out", "conv_out", "x_embedder", "time_text_embed", "context_embedder",
    "transformer_blocks", "single_transformer_blocks", "norm_out", "proj_out",
)  # fmt: skip


def network_order(name: LayerName) -> tuple[object, ...]:
    """Sort key that follows a forward pass: components, then stages, then numbers by value."""

    def stage(word: str) -> tuple[int, str]:
        return (_STAGES.index(word) if word in _STAGES else len(_STAGES), word)

    head, _, rest = name.module.partition(".")
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"\.", rest))
    return (stage(name.component), stage(head), parts)
