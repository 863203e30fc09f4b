"""What may happen to a denoiser while a bundle is attached, and how replay follows it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .errors import AttachError
from .fused import Fused
from .patch import Patch
from .target import Target
from .weights import compute_dtype, obstacle


def state(target: Target) -> tuple[object, ...]:
    """Of a layer: what tells that its denoiser was moved, packed, offloaded or rewired."""
    weight = target.module.weight
    hooked = ["_diffusers_hook" in vars(module) for module in target.around()]
    kind = type(weight), type(weight.data)
    return weight.dtype, weight.is_meta, kind, hooked, target.bypassed(), target.replaced


def follow(patches: Iterable[tuple[str, Patch]], otherwise: torch.dtype) -> None:
    """Follow a denoiser whose state has changed; it may be in another dtype.

    Args:
        patches: All of its layers, by name.
        otherwise: What a branch computes in beside a packed weight.

    Raises:
        AttachError: It has changed in a way that cannot be followed.
    """
    for name, patch in patches:
        if why := _astray(patch):
            raise AttachError(
                f"the pipeline was changed while a bundle was attached: {name} has now {why}",
                advice="Undo that or detach the bundle, and attach it again after the change",
            )
        patch.refit(compute_dtype(patch.module, otherwise))


def _astray(patch: Patch) -> str:
    """Why a layer does not reach the output any more as it should; empty if it does."""
    if patch.target.replaced:
        return "another layer in its place"
    if patch.target.bypassed():
        return "a weight that fuse_qkv_projections bypasses"
    return obstacle(patch.target) if isinstance(patch, Fused) else ""
