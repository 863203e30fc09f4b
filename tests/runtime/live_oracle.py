"""Feature-level selection as the paper writes it: dense W0 + ΔW in each layer, torch's own KL."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .naive_bundle import Spec, layer_of

TIE = 1e-6

Run = dict[str, list[list[tuple[int, float]]]]
"""By layer: for each call, choice (0 content, 1 style) and margin d_c − d_s of every sample."""


@dataclass
class Naive:
    """How the oracle chooses; `samples` is the batch of a denoiser call.

    Where two divergences are as good as equal it takes what `ties` says, by layer and call.
    """

    samples: int
    criterion: str = "kl"
    temperature: float = 1.0
    batch: bool = False
    tokens: int = 0
    strengths: tuple[float, float] = (1.0, 1.0)
    ties: dict[str, list[list[int]]] = field(default_factory=dict[str, list[list[int]]])
    run: Run = field(default_factory=dict[str, list[list[tuple[int, float]]]])

    def distance(self, moved: Tensor, base: Tensor) -> float:
        """Of one sample: `[tokens, channels]` each, in float64."""
        if self.criterion == "cosine":
            return float((1 - functional.cosine_similarity(moved, base, 1)).mean())
        if self.criterion == "dot":
            return float(-(moved * base).sum(1).mean())
        p, q = (functional.log_softmax(x / self.temperature, 1) for x in (moved, base))
        if self.criterion == "kl":
            return float(functional.kl_div(q, p, reduction="none", log_target=True).sum(1).mean())
        m = ((p.exp() + q.exp()) / 2).log()
        both = [functional.kl_div(m, x, reduction="none", log_target=True) for x in (p, q)]
        return float((sum(both) / 2).sum(1).mean())  # type: ignore[union-attr] - a tensor


@contextlib.contextmanager
def attached(roots: dict[str, nn.Module], specs: list[Spec], naive: Naive) -> Generator[Run]:
    """Every layer computes densely what its rule says."""
    modules = [layer_of(roots[spec.component], spec.module) for spec in specs]
    for module, spec in zip(modules, specs, strict=True):
        module.forward = _forward(module, spec, naive)
    try:
        yield naive.run
    finally:
        for module in modules:
            del module.forward


def _forward(module: Any, spec: Spec, naive: Naive) -> Any:
    W0, bias = module.weight.detach().clone(), module.bias
    spatial = isinstance(module, nn.Conv2d)

    def compute(x: Tensor, W: Tensor) -> Tensor:
        return module._conv_forward(x, W, bias) if spatial else functional.linear(x, W, bias)

    def forward(x: Tensor) -> Tensor:
        deltas = [d.to(W0) for d in spec.deltas]
        if "live" not in spec.rule:
            gates = [g * s for g, s in zip(spec.rule["gates"], naive.strengths, strict=True)]
            return compute(x, W0 + sum(g * d for g, d in zip(gates, deltas, strict=True)))
        base, moved = compute(x, W0), [compute(x, W0 + d) for d in deltas]
        each: list[list[float]] = []
        for i in range(naive.samples):
            rows = [_tokens(part.chunk(naive.samples)[i], spatial) for part in (base, *moved)]
            if 0 < naive.tokens < len(rows[0]):
                spread = [len(rows[0]) * k // naive.tokens for k in range(naive.tokens)]
                rows = [row[spread] for row in rows]
            each.append([naive.distance(row, rows[0]) for row in rows[1:]])
        margins = [c - s for c, s in each]
        if naive.batch:
            margins = [sum(margins) / len(margins)] * len(margins)
        calls = naive.run.setdefault(spec.module, [])
        given = naive.ties[spec.module][len(calls)]
        choices = [
            (0 if margin >= 0 else 1) if abs(margin) > TIE else found
            for margin, found in zip(margins, given, strict=True)
        ]
        calls.append(list(zip(choices, margins, strict=True)))
        strong = [compute(x, W0 + s * d) for s, d in zip(naive.strengths, deltas, strict=True)]
        parts = [strong[c].chunk(naive.samples)[i] for i, c in enumerate(choices)]
        return torch.cat(parts)

    return forward


def _tokens(part: Tensor, spatial: bool) -> Tensor:
    if spatial:
        return part.movedim(1, -1).reshape(-1, part.shape[1]).double()
    return part.reshape(-1, part.shape[-1]).double()
