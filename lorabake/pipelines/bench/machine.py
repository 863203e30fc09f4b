"""What a measurement was made on."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device, root: Any, size: str, *, compiled: bool) -> dict[str, str | int]:  # noqa: ANN401 - any denoiser
    """Device, threads, versions, and what was computed there.

    Args:
        device: Where the denoiser computes.
        root: The denoiser.
        size: Of an image, in words.
        compiled: Whether under torch.compile.
    """
    return {
        "device": _name(device),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "diffusers", "peft")},
        "model": type(root).__name__,
        "dtype": str(root.dtype).removeprefix("torch."),
        "size": size,
        "mode": "compiled" if compiled else "eager",
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
