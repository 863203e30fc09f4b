"""‖ΔW‖² of a layer by its factors."""

from __future__ import annotations

import torch

from .types import LowRank


def energy(layer: LowRank, device: torch.device | None = None) -> float:
    """‖ΔW‖², the sum of its squared singular values, in float64 and without the dense ΔW.

    tr(ΔWᵀ·ΔW) = scale²·tr(Bᵀ·B·A·Aᵀ): two r × r Gram matrices, multiplied entry by entry.

    Args:
        layer: Factors of any floating dtype, linear or convolutional.
        device: Where to compute; the CPU if None, or if it has no float64.
    """
    if device is None or device.type == "mps":
        device = torch.device("cpu")
    B = layer.up.to(device, torch.float64).flatten(1)
    A = layer.weighted(torch.float64).to(device).flatten(1)
    return layer.scale * layer.scale * max(0.0, float(((B.T @ B) * (A @ A.T)).sum()))
