"""Which weights can be changed in place, and what computes beside those that cannot."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .target import Patchable, Target

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def obstacle(target: Target, shared: frozenset[int] = frozenset()) -> str:
    """Why a layer's weight cannot be changed in place; empty if it can.

    Args:
        target: The layer.
        shared: Ids of parameters that several layers use.
    """
    # Not `module.weight`, which may be computed anew at each access.
    weight = dict(target.module.named_parameters(recurse=False)).get("weight")
    if weight is None:
        return "a parametrized weight"
    if weight.is_meta:
        return "an offloaded weight"
    if target.group_offloading() is not None:
        return "a weight under group offloading"
    for kind in (type(weight), type(weight.data)):
        if kind not in (nn.Parameter, Tensor):
            return f"a weight of the type {kind.__name__}"
    if weight.dtype not in DTYPES or tuple(weight.shape) != shape(target.module):
        return f"a weight in {str(weight.dtype).removeprefix('torch.')}"
    if weight.is_inference():
        return "a weight made in inference mode"
    return "a weight that several layers share" if id(weight) in shared else ""


def unloaded(target: Target) -> bool:
    """Whether a weight has no values at all, and nothing that would bring them for a call."""
    return target.module.weight.is_meta and not any(
        hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
        for module in target.around()
    )


def shared_weights(roots: Iterable[nn.Module]) -> frozenset[int]:
    """Ids of the parameters that stand in these models more than once."""
    seen: set[int] = set()
    twice: set[int] = set()
    for root in roots:
        for _, parameter in root.named_parameters(remove_duplicate=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(twice)


def compute_dtype(module: Patchable, otherwise: torch.dtype) -> torch.dtype:
    """What a branch beside this layer computes in: its weight's dtype, unless that is packed."""
    for dtype in (module.weight.dtype, getattr(module, "compute_dtype", None)):
        if dtype in DTYPES:
            return dtype
    return otherwise if otherwise in DTYPES else torch.float32


def shape(module: Patchable) -> tuple[int, ...]:
    """Shape of the dense weight, also where what is stored is packed."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
