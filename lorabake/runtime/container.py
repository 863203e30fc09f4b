"""The file around a bundle: safetensors, opened within bounds (SPEC.md §1, §9)."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import BundleError

MAX_HEADER = 25_000_000
DTYPES = ("F32", "F16", "BF16", "F64")

_PART = 1 << 20
"""Bytes read at once."""
_PATH = "Check the path of the bundle"
_AGAIN = "The file is damaged or incomplete; download or make it again"


class Container:
    """An open safetensors file. Tensors are mapped into memory and read when they are used.

    Args:
        path: A file on this machine.

    Raises:
        BundleError: There is no such file, or it is not safetensors, truncated or oversized.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header_size = _header_size(path)
        try:
            # The library checks what we rely on: offsets in order and gapless, sizes that match.
            self._file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise BundleError(
                f"it is not a whole safetensors file ({error})", where=str(path), advice=_AGAIN
            ) from error
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.keys = frozenset(self._file.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """Type of a tensor as the header has it, for example `BF16`."""
        return str(self._file.get_slice(key).get_dtype())

    def tensor(self, key: str) -> Tensor:
        """A tensor on the CPU, backed by the file."""
        return self._file.get_tensor(key)

    def finite(self, key: str) -> bool:
        """Whether a tensor holds neither NaN nor infinity."""
        return all(math.isfinite(bound) for bound in torch.aminmax(self.tensor(key)))

    def digest(self) -> str:
        """SHA-256 of all bytes after the header, in hex."""
        with self.path.open("rb") as file:
            file.seek(8 + self.header_size)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def sorted_digest(self) -> str:
        """SHA-256 of the tensors' bytes in the order of their keys, wherever they lie, in hex."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(self.header_size))
            for key in sorted(self.keys):
                start, end = header[key]["data_offsets"]
                file.seek(8 + self.header_size + start)
                while start < end and (part := file.read(min(end - start, _PART))):
                    digest.update(part)
                    start += len(part)
        return digest.hexdigest()


def _header_size(path: Path) -> int:
    try:
        if not S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise BundleError("it is not a regular file", where=str(path), advice=_PATH)
        with path.open("rb") as file:
            head, size = file.read(9), file.seek(0, 2)
    except (OSError, ValueError) as error:  # the latter for a path with a null character
        raise BundleError(
            f"it cannot be opened ({getattr(error, 'strerror', error)})",
            where=str(path),
            advice=_PATH,
        ) from error
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or header > size - 8 or head[8:] != b"{":
        raise BundleError("it is not a whole safetensors file", where=str(path), advice=_AGAIN)
    if header > MAX_HEADER:
        raise BundleError(
            f"its header of {header} bytes exceeds the limit of {MAX_HEADER}",
            where=str(path),
            advice="No bundle needs one so large; get the file from a source that you trust",
        )
    return header
