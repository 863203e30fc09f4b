"""Places where weights are kept between calls, with the CPU as the device that computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import torch
from diffusers.hooks.group_offloading import apply_group_offloading

Place = Callable[[Any, Path], object]


def _group(level: str, *, disk: bool = False) -> Place:
    def place(pipe: Any, folder: Path) -> None:
        apply_group_offloading(
            pipe.unet,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type=level,
            num_blocks_per_group=1,
            offload_to_disk_path=str(folder) if disk else None,
        )

    return place


def _split(pipe: Any, folder: Path) -> None:
    parts = [name for name, _ in pipe.unet.named_children()]
    where: dict[str, Any] = {name: ("cpu", "disk")[i % 2] for i, name in enumerate(parts)}
    accelerate.dispatch_model(
        pipe.unet, where, main_device=torch.device("cpu"), offload_dir=str(folder), force_hooks=True
    )


PLACES: dict[str, Place] = {
    "model offload": lambda pipe, _: pipe.enable_model_cpu_offload(device="cpu"),
    # What enable_sequential_cpu_offload calls; that adds an index to the device, which a CPU lacks.
    "sequential offload": lambda pipe, _: accelerate.cpu_offload(pipe.unet, torch.device("cpu")),
    "sequential offload to disk": lambda pipe, folder: accelerate.disk_offload(
        pipe.unet, str(folder), torch.device("cpu")
    ),
    "group offload by block": _group("block_level"),
    "group offload by leaf": _group("leaf_level"),
    "group offload by block, to disk": _group("block_level", disk=True),
    "group offload by leaf, to disk": _group("leaf_level", disk=True),
    "device_map on one device": lambda pipe, _: accelerate.dispatch_model(
        pipe.unet, {"": "cpu"}, force_hooks=True
    ),
    "device_map over CPU and disk": _split,
}
