"""Plain LoRA files read naively, and the plan's mean and error by dense sums over many moments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..oracle import Dense, Verdict

ENDINGS = {".lora_A.weight": ".lora_B.weight", ".lora_down.weight": ".lora_up.weight"}


def deltas(path: Path) -> dict[str, Tensor]:
    """ΔW of every module by its stem, float64; alpha / rank as kohya has it."""
    tensors, found = load_file(path), dict[str, Tensor]()
    for down_end, up_end in ENDINGS.items():
        for key in [key for key in tensors if key.endswith(down_end)]:
            stem, down = key.removesuffix(down_end), tensors.pop(key).double()
            up, alpha = tensors.pop(stem + up_end).double(), tensors.pop(f"{stem}.alpha", None)
            scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
            product = scale * up.flatten(1) @ down.flatten(1)
            found[stem] = product.reshape(up.shape[0], *down.shape[1:])
    assert not tensors
    return found


def moments(content: Dense, style: Dense, verdicts: dict[str, Verdict]) -> dict[str, list[Tensor]]:
    """ΔW of every layer at each of the verdicts' moments; summed where nothing is chosen."""
    found: dict[str, list[Tensor]] = {}
    for name, verdict in verdicts.items():
        own = [dense.delta.get(name) for dense in (content, style)]
        both = torch.stack([x for x in own if x is not None]).sum(0)
        picked = [own[i] if i is not None else both for i in verdict.select]
        found[name] = [x for x in picked if x is not None]
    return found


def mean(at: Sequence[Tensor]) -> Tensor:
    return torch.stack([*at]).mean(0)


def away(at: Sequence[Tensor], static: Tensor) -> float:
    """Mean squared distance of the moments from one ΔW."""
    return sum(float((x - static).square().sum()) for x in at) / len(at)


def size(at: Sequence[Tensor]) -> float:
    return away(at, torch.zeros_like(at[0]))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
