"""How much memory something needs at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Generator
from pathlib import Path

import torch

_SELF = Path("/proc/self")


@contextlib.contextmanager
def settled() -> Generator[None]:
    """Garbage collection looks only at what is new inside: half a second less each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Peak:
    """Measures from `start` to `read`.

    On CUDA it is all that is allocated on the device, the model included. On a CPU under Linux it
    is the growth of the resident memory. Elsewhere nobody tells.

    Args:
        device: Where the work happens.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None

    def start(self) -> None:
        """Forget earlier peaks."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            # What the allocator keeps for later would hide what the next one asks for.
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            self._before = None
            with contextlib.suppress(OSError):
                (_SELF / "clear_refs").write_text("5")  # the peak is what is held now
                self._before = _resident("VmRSS")

    def read(self) -> int | None:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._before is None:
            return None
        peak = _resident("VmHWM")
        return None if peak is None else max(0, peak - self._before)


def _resident(name: str) -> int | None:
    lines = (_SELF / "status").read_text().splitlines()
    found = (line.split()[1] for line in lines if line.startswith(name))
    return next((int(kilobytes) * 1024 for kilobytes in found), None)
