"""A second, naive writer of bundles, and dense ΔW to compare with; shares no code with lorabake."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass
class Spec:
    """One layer: ranks per source (0 where it lacks the layer), and the manifest's rule.

    With `columns` each source gets coefficients, which are in `deltas` but not in `plain`.
    """

    component: str
    module: str
    ranks: tuple[int, int]
    rule: dict[str, Any]
    columns: bool = False
    deltas: list[Tensor] = field(default_factory=list[Tensor])
    plain: list[Tensor] = field(default_factory=list[Tensor])
    coefficients: list[Tensor] = field(default_factory=list[Tensor])


def one_of_each(component: str, root: nn.Module, seed: int = 0) -> list[Spec]:
    """Linear and conv layers of a denoiser with all kinds of rules and mixed ranks."""
    g = torch.Generator().manual_seed(seed)
    names = [
        name
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and name.rpartition(".")[2] in ("conv1", "conv_shortcut"))
        or name.endswith("downsamplers.0.conv")
    ]
    specs: list[Spec] = []
    for i, name in enumerate(names):
        ranks = [(2, 3), (4, 1), (3, 3)][i % 3]
        draw = float(torch.rand((), generator=g))
        if i % 7 == 5:
            ranks = (ranks[0], 0) if i % 2 else (0, ranks[1])
            rule: dict[str, Any] = {"gates": [1.0, 1.0]}
        elif i % 7 == 3:
            bits = torch.randint(0, 2, (5 + i % 4,), generator=g)
            rule = {"select": "".join(map(str, bits.tolist()))}
        elif i % 7 == 6:
            rule = {"gates": [1.0, 0.5]}
        else:
            rule = {"scores": [0.3 + 2 * draw, 1.0]}
        specs.append(Spec(component, name, ranks, rule))
    return specs


def layer_of(root: nn.Module, path: str) -> Any:
    """A module by its path; transformers 5 dropped `text_model.` from CLIP's paths."""
    names = dict(root.named_modules())
    return names[path] if path in names else names[path.removeprefix("text_model.")]


def write(
    path: Path,
    specs: list[Spec],
    roots: dict[str, nn.Module],
    *,
    scale: dict[str, Any] | None = None,
    size: float = 0.05,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    twins: bool = False,
    **edit: Any,
) -> Path:
    """Random factors for these layers, stacked and padded; fills in each spec's `deltas`.

    With `twins` both sources of a layer have the same factors.
    """
    g = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    layers: list[dict[str, Any]] = []
    widest: dict[str, int] = {}
    for s in specs:
        widest[s.component] = max(widest.get(s.component, 0), sum(s.ranks))
    for i, s in enumerate(specs):
        weight = layer_of(roots[s.component], s.module).weight
        out, width, *kernel = weight.shape
        total = widest[s.component] + 2
        down = torch.zeros(total, width, *kernel)
        up = torch.zeros(out, total, *(1 for _ in kernel))
        start = 0
        s.deltas, s.plain, s.coefficients = [], [], []
        a = b = down
        for rank in s.ranks:
            if not (twins and s.deltas):
                a = torch.randn(rank, width, *kernel, generator=g).to(dtype).float()
                b = torch.randn(out, rank, *(1 for _ in kernel), generator=g) * size
                b = b.to(dtype).float()
            if s.columns:
                s.plain.append((b.flatten(1) @ a.flatten(1)).reshape(weight.shape))
                m = (0.2 + torch.rand(width, generator=g)) * torch.randn(width, generator=g).sign()
                s.coefficients.append(m := m.to(dtype).float())
                a = torch.einsum("ri...,i->ri...", a, m).to(dtype).float()
            down[start : start + rank], up[:, start : start + rank] = a, b
            start += rank
            s.deltas.append((b.flatten(1) @ a.flatten(1)).reshape(weight.shape))
        for row, m in enumerate(s.coefficients, start):
            for j in range(width):
                down[row, j] = m[j]
        tensors |= {
            f"layer{i}.lora_A.weight": down.to(dtype),
            f"layer{i}.lora_B.weight": up.to(dtype),
        }
        layers.append(
            {
                "component": s.component,
                "module": s.module,
                "down": f"layer{i}.lora_A.weight",
                "up": f"layer{i}.lora_B.weight",
                "ranks": list(s.ranks),
                **s.rule,
                **({"columns": True} if s.columns else {}),
            }
        )
    save_file(tensors, path)
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    manifest = {
        "format": "1.1" if any(s.columns for s in specs) else "1.0",
        "method": "klora",
        "params": {"k": None},
        "family": "sd15",
        "base": "some/base",
        "sources": [source("content"), source("style")],
        "scale": scale or {"pattern": "linear", "alpha": 1.5, "beta": 0.5, "gamma": 0.9},
        "layers": layers,
        "digest": hashlib.sha256(data).hexdigest(),
    } | edit
    save_file(tensors, path, metadata={"lorabake": json.dumps(manifest)})
    return path


def source(role: str) -> dict[str, Any]:
    """What a manifest says of a LoRA."""
    return {
        "role": role,
        "name": f"a {role}",
        "sha256": "0" * 64,
        "strength": 1.0,
        "trigger_words": ["<x>"],
        "base_model": None,
        "license": None,
    }


def all_live(component: str, root: nn.Module) -> list[Spec]:
    """Layers as `one_of_each` has them, each choosing live where both sources are there."""
    specs = one_of_each(component, root)
    for i, spec in enumerate(specs):
        if 0 not in spec.ranks:
            spec.rule = {"gates": [1.0, 0.5]} if i % 11 == 4 else {"live": True}
    return specs


LIVE: dict[str, Any] = {
    "format": "1.2",
    "method": "dynamic",
    "scale": None,
    "live": {"criterion": "kl", "temperature": 1.0, "scope": "sample", "tokens": 0},
}
"""What a live bundle has beside its layers."""


def gates(
    spec: Spec,
    position: int,
    count: int,
    *,
    alpha: float = 1.5,
    beta: float = 0.5,
    gamma: float = 0.9,
    modulo: bool = False,
) -> tuple[float, float]:
    """What of a layer is applied at this position, by the formulas of the paper."""
    if "gates" in spec.rule:
        return spec.rule["gates"]
    if "select" in spec.rule:
        bits = spec.rule["select"]
        return (1.0, 0.0) if bits[position * len(bits) // count] == "0" else (0.0, 1.0)
    s = alpha * position / count + beta
    s_c, s_s = spec.rule["scores"]
    return (1.0, 0.0) if s_c >= s_s * gamma * (s % alpha if modulo else s) else (0.0, 1.0)
