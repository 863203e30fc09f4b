"""Naive random LoRAs and a dense float64 K-LoRA by the paper; shares no code with lorabake."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
"""Layer path with its component (`unet.mid_block…`) → shape of the base weight."""


@dataclass
class Dense:
    """A LoRA as an oracle sees it: dense updates and ranks by layer path."""

    delta: dict[str, Tensor]
    rank: dict[str, int]


def _keys(path: str, dialect: str) -> tuple[str, str, str]:
    component, _, module = path.partition(".")
    if dialect == "peft":
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight", f"{path}.alpha"
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
    flat = f"{prefix}_{module.replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight", f"{flat}.alpha"


def write_lora(path: Path, shapes: Shapes, dialect: str, seed: int, keep: float = 0.85) -> Dense:
    """Write a random LoRA: mixed ranks, uneven layers, some missing, alpha ≠ rank (kohya)."""
    g = torch.Generator().manual_seed(seed)
    dense, tensors = Dense({}, {}), dict[str, Tensor]()
    for name, (out, width, *kernel) in shapes.items():
        draw = torch.rand(4, generator=g)
        if draw[0] > keep:
            continue
        rank = int([1, 2, 3, 4, 8, 12][int(draw[1] * 6)])
        size = 10 ** (float(draw[2]) * 1.5 - 2)
        down = torch.randn(rank, width, *kernel, generator=g)
        up = torch.randn(out, rank, *(1 for _ in kernel), generator=g) * size
        key_down, key_up, key_alpha = _keys(name, dialect)
        tensors |= {key_down: down, key_up: up}
        scale = 1.0
        if dialect == "kohya" and draw[3] > 0.3:
            alpha = float([1.0, 3.0, 4.0, 16.0][int(draw[3] * 97) % 4])
            tensors[key_alpha] = torch.tensor(alpha)
            scale = alpha / rank
        product = up.double().flatten(1) @ down.double().flatten(1)
        dense.delta[name] = scale * product.reshape(out, width, *kernel)
        dense.rank[name] = rank
    save_file(tensors, path)
    return dense


@dataclass
class Verdict:
    """K-LoRA decisions by the book: rows of 0/1/None and the smallest relative margin per row."""

    select: list[int | None]
    margin: float
    scores: tuple[float, float] | None


def klora(
    content: Dense,
    style: Dense,
    steps: int,
    *,
    alpha: float = 1.5,
    beta: float = 0.5,
    modulo: bool = False,
    gamma: str = "sum",
) -> dict[str, Verdict]:
    """Equations 1–10 of arXiv 2502.18461, dense and in float64; text encoders are summed."""
    both = [n for n in content.delta if n in style.delta and not n.startswith("text_encoder")]
    sums = {n: (content.delta[n].abs().sum(), style.delta[n].abs().sum()) for n in both}
    ratios = torch.stack([c / s for c, s in sums.values()])
    if gamma == "sum":
        g = float(sum(c for c, _ in sums.values()) / sum(s for _, s in sums.values()))
    else:
        g = float(ratios[ratios <= 3 * ratios.mean()].mean())
    verdicts: dict[str, Verdict] = {}
    for name in {*content.delta, *style.delta}:
        if name not in both:
            one_sided = not (name in content.delta and name in style.delta)
            constant = (0 if name in content.delta else 1) if one_sided else None
            verdicts[name] = Verdict([constant] * steps, 1.0, None)
            continue
        k = min(content.rank[name] * style.rank[name], content.delta[name].numel())
        s_c, s_s = (
            float(d[name].abs().flatten().topk(k).values.sum())
            for d in (content.delta, style.delta)
        )
        rows, margin = list[int | None](), 1.0
        for i in range(steps):
            s = alpha * i / steps + beta
            right = s_s * g * (s % alpha if modulo else s)
            rows.append(0 if s_c >= right else 1)
            margin = min(margin, abs(s_c - right) / max(s_c, right))
        verdicts[name] = Verdict(rows, margin, (s_c, s_s))
    return verdicts


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
