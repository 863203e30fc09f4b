"""The head of a canonical safetensors file: same content, same bytes.

safetensors' own writer orders metadata differently from process to process; this one sorts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


class Entry(NamedTuple):
    """A tensor to come: its key and shape."""

    key: str
    shape: tuple[int, ...]


def head(entries: Sequence[Entry], dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    """Everything before the tensor data: the length of the header (u64, little endian) and itself.

    The data of the entries follows without gaps in the order given. Names are sorted at every
    level and trailing spaces make the head a multiple of 8 bytes long.

    Args:
        entries: In file order; keys differ.
        dtype: Of all tensors: float32, float16 or bfloat16.
        metadata: Beside the tensors.
    """
    # A file name that is not UTF-8 reaches us as lone surrogates, which no strict reader takes.
    texts = {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()}
    table: dict[str, object] = {"__metadata__": texts}
    end = 0
    for key, shape in entries:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        table[key] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
