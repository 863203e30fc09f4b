"""The bytes of a LoRA file: tensors stay memory-mapped in the dtype that they are stored in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoraFileError, UnsupportedLoraError, listed
from . import dialects
from .metadata import parsed
from .suffixes import Slot
from .types import FLOAT32_MAX

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Contents:
    """What is in a file: its tensors, its `__metadata__` and the SHA-256 of its bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str


def load(path: Path, where: str) -> Contents:
    """Map a safetensors file into memory.

    Raises:
        LoraFileError: It cannot be opened, is empty, cut off, or not a safetensors file.
    """
    try:
        str(path).encode()  # the library takes no other names, but does not say so
        if not path.stat().st_size:
            raise ValueError("it has no bytes")
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
            metadata = dict(file.metadata() or {})
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except UnicodeEncodeError as e:
        raise LoraFileError(
            "has a name, or is in a folder, that is not UTF-8 text, so it cannot be opened",
            where=where,
            advice="Rename it",
        ) from e
    except OSError as e:
        raise LoraFileError(
            f"cannot be read ({e.strerror or e})", where=where, advice="Check its permissions"
        ) from e
    except (SafetensorError, ValueError) as e:
        raise LoraFileError(
            f"is not a whole safetensors file ({_cut_off(path) or e})",
            where=where,
            advice="Download or save it again",
        ) from e
    if not tensors:
        raise LoraFileError("holds no tensors", where=where, advice="Download or save it again")
    return Contents(tensors, metadata, digest)


def _cut_off(path: Path) -> str:
    """Which tensors the file ends before, if its header can be read; empty if that is not it."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > path.stat().st_size:
                return ""
            entries = parsed(stream.read(size).decode())
        there = path.stat().st_size - 8 - size
        ends = {k: int(v["data_offsets"][1]) for k, v in entries.items() if k != "__metadata__"}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return ""
    lost = sorted((key for key, end in ends.items() if end > there), key=lambda key: ends[key])
    if not lost:
        return ""
    style = dialects.named(ends)
    return f"it ends before {len(lost)} of its {len(ends)} tensors, the first of them {lost[0]}" + (
        f"; it was taken for a LoRA in the style of {style}" if style else ""
    )


def checked(tensors: Mapping[str, tuple[Tensor, Slot]], where: str) -> dict[str, Tensor]:
    """Refuse numbers that cannot be fused; 8-bit floats become float16, which holds them exactly.

    One pass over the mapped bytes, without a copy: the extremes of a tensor are NaN or too large
    exactly when one of its entries is.

    Args:
        tensors: Tensor and role by name.
        where: The file, for messages.

    Raises:
        LoraFileError: A tensor has entries that are NaN or, in float32, infinite.
        UnsupportedLoraError: A factor is not a floating-point tensor.
    """
    kinds = [f"{k} ({t.dtype})" for k, (t, slot) in tensors.items() if not _numeric(t, slot)]
    if kinds:
        raise UnsupportedLoraError(
            f"factors must be float16, bfloat16, float32, float64 or 8-bit floats, "
            f"but {listed(kinds, 3)}",
            where=where,
            advice="Quantised LoRAs cannot be fused; choose a floating-point release",
        )
    wide = {
        key: tensor.to(torch.float16) if tensor.dtype in _EIGHT_BIT else tensor
        for key, (tensor, _) in tensors.items()
    }
    broken = [key for key, tensor in wide.items() if not _finite(tensor)]
    if broken:
        raise LoraFileError(
            f"{len(broken)} of its {len(tensors)} tensors have NaN or infinite entries, "
            f"or larger ones than float32 can hold: "
            f"{listed(broken, 3)}",
            where=where,
            advice="The training diverged or the file is damaged; choose another checkpoint",
        )
    return wide


def _numeric(tensor: Tensor, slot: Slot) -> bool:
    if slot == "alpha":  # Some trainers store it as an integer.
        return not tensor.dtype.is_complex and tensor.dtype is not torch.bool
    return tensor.dtype in (*_FLOATS, *_EIGHT_BIT)


def _finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True  # Told better by the check of shapes.
    return all(abs(extreme.item()) <= FLOAT32_MAX for extreme in torch.aminmax(tensor))
