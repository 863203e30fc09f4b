"""Writing a bundle: one layer in memory at a time, the same bytes in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import OutputError
from ..lora.pairs import Pair
from ..runtime.manifest import KEY, Manifest, dumps
from .header import Entry, head
from .stack import stack, uniform_ranks

_NO_DIGEST = "0" * 64


def write(
    file: BinaryIO,
    manifest: Manifest,
    pairs: Sequence[Pair],
    dtype: torch.dtype,
    *,
    metadata: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Write a bundle.

    Tensors lie in the order of their keys. The digest, a SHA-256 over the tensor data, is known
    only at the end and is then put into the manifest, where its room was kept.

    Args:
        file: Empty, seekable.
        manifest: Its digest does not matter.
        pairs: What the manifest's layers stack, in the same order, every strength in their
            scales, column coefficients as `with_columns` gives them.
        dtype: Of all tensors.
        metadata: For other tools, beside the manifest.
        progress: Called as `progress(layers done, layers in all)`.

    Returns:
        The digest.

    Raises:
        OutputError: The values are too large or too small for `dtype`.
        ValueError: Layers and pairs disagree about column coefficients.
    """
    ranks = uniform_ranks(pairs)
    layers = sorted(zip(manifest.layers, pairs, strict=True), key=lambda item: item[0].down)
    entries: list[Entry] = []
    for layer, pair in layers:
        if layer.columns != pair.columns:
            raise ValueError(f"{layer}: the manifest and the pair differ in column coefficients")
        rank = ranks[layer.component]
        out, *width = pair.shape
        entries.append(Entry(layer.down, (rank, *width)))
        entries.append(Entry(layer.up, (out, rank, *(1 for _ in width[1:]))))
    text = dumps(replace(manifest, digest=_NO_DIGEST))
    start = head(entries, dtype, {**metadata, KEY: text})
    file.write(start)
    digest = hashlib.sha256()
    for done, (layer, pair) in enumerate(layers, 1):
        for tensor in _stacked(pair, ranks[layer.component], dtype):
            data = _bytes(tensor)
            digest.update(data)
            file.write(data)
        progress(done, len(layers))
    file.seek(start.index(b'\\"digest\\":\\"' + _NO_DIGEST.encode()) + len(b'\\"digest\\":\\"'))
    file.write(digest.hexdigest().encode())
    file.flush()
    return digest.hexdigest()


def _stacked(pair: Pair, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The layer's two tensors; an error names it."""
    try:
        return stack((pair.content, pair.style), rank, dtype)
    except OutputError as error:
        raise OutputError(error.what, where=str(pair.name), advice=error.advice) from error


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
