"""Fused replay: the layer's weight itself is W0 + ΔW."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import AttachError
from .patch import Gates, Pair, Patch, Read
from .target import Target

Keep = Literal["device", "cpu"]
"""Where W0 is kept: beside the weight, or in (pinned) CPU memory."""


class Fused(Patch):
    """Sets a layer's weight in place; W0 is kept, and it is W0 that a state dict holds.

    For calls without the LoRAs weight and W0 change places, which costs nothing.

    Args:
        target: The layer.
        read: Reads its factors.
        keep: Where W0 is kept.
    """

    mode = "fused"

    def __init__(self, target: Target, read: Read, keep: Keep) -> None:
        super().__init__(target, read)
        self._weight = self.module.weight
        self._keep, self._merged = keep, target.merged()
        self._kept: Tensor | None = None
        self._base = False
        self._handle = self.module.register_state_dict_post_hook(self)

    def show(self, *, base: bool) -> None:
        """Let the weight be W0 for now, or again what was set: the two exchange their memory."""
        if base != self._base and self._kept is not None:
            shown = self._weight.data
            self._weight.data = self._kept.to(shown.device, shown.dtype)
            self._kept, self._base = shown, base
            torch.clear_autocast_cache()

    def kept(self) -> list[Tensor]:
        """W0, once the weight has been changed."""
        return [] if self._kept is None else [self._kept]

    def lost(self) -> str:
        """What has happened to the weight that `remove` cannot mend; empty if nothing has."""
        weight = dict(self.module.named_parameters(recurse=False)).get("weight")
        offloaded = weight is not None and weight.is_meta  # with W0, out of the state dict
        if self.target.replaced or (weight is not self._weight and not offloaded):
            return "a layer or its weight was replaced"
        if self.target.merged() != self._merged:
            return "a LoRA was fused into the weights or out of them"
        if self.target.bypassed():
            return "fuse_qkv_projections has copied the weights of the moment"
        if getattr(self.target.group_offloading(), "offload_to_disk_path", None):
            return "group offloading has written the weights of the moment to disk"
        return ""

    def remove(self) -> None:
        """Set the weight to W0, bit for bit, unless it is another's by now."""
        self._handle.remove()
        self.show(base=False)
        if self._kept is not None and self.module.weight is self._weight:
            self._weight.detach().copy_(self._kept)
            torch.clear_autocast_cache()

    def _load(self, dtype: torch.dtype) -> None:
        if self._kept is not None:
            self._kept = self._kept.to(dtype)

    def _form(self, A: Tensor, B: Tensor) -> Pair:
        return _product_in(self._weight.dtype, A.flatten(1), B.flatten(1))

    def _apply(self, gates: Gates) -> None:
        """Set the weight to W0 + Σ g_i·B_i·A_i, accumulated in float32 or wider, rounded once."""
        if self.module.weight is not self._weight or self.target.merged() != self._merged:
            raise AttachError(
                f"while a bundle was attached, {self.lost()}",
                where=self.target.name,
                advice="Detach the bundle, load the model and its LoRAs again, then attach again",
            )
        self.show(base=False)
        weight = self._weight.detach()
        W0 = self._original(weight)
        terms = list(self._live(gates, weight.device))
        torch.clear_autocast_cache()  # which holds shorter copies of weights
        if len(terms) == 1 and weight.is_contiguous() and _same_dtype(weight, *terms[0][1:]):
            gate, down, up = terms[0]
            # One kernel: it accumulates in float32 also where the dtype is shorter.
            torch.addmm(W0.flatten(1), up, down, alpha=gate, out=weight.flatten(1))
            return
        wide = torch.promote_types(W0.dtype, torch.float32)
        total = W0.to(wide, copy=True).flatten(1)
        for gate, A, B in terms:
            total.addmm_(B.to(wide), A.to(wide), alpha=gate)  # in place: autocast leaves it alone
        weight.copy_(total.view(weight.shape))

    def _original(self, weight: Tensor) -> Tensor:
        """W0, beside the weight; kept from the first change on."""
        if self._kept is None:
            self._kept = _pinned(weight) if self._keep == "cpu" else weight.clone()
        elif self._keep == "device":
            self._kept = self._kept.to(weight.device)
        return self._kept.to(weight.device, non_blocking=True)

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
        """Put W0 into a state dict; torch marks such hooks, which a bound method does not allow."""
        saved = state.get(f"{prefix}weight")
        if saved is not None and self._kept is not None and not self._base:
            state[f"{prefix}weight"] = self._kept.to(saved.device, saved.dtype)


def _product_in(dtype: torch.dtype, A: Tensor, B: Tensor) -> Pair:
    """Factors whose product is B·A to float32 accuracy, in this dtype if one can have that.

    bfloat16 has float32's range, so that the sum of two holds 16 bits of a number: B·A becomes
    hi·hi + hi·lo + lo·hi, stacked along the rank. float16 has not, and stays float32 here, as it
    does on a CPU, which has no fast product for it.
    """
    if dtype == torch.float16 and (A.dtype != dtype or A.device.type == "cpu"):
        dtype = torch.float32
    if dtype != torch.bfloat16 or A.dtype == dtype:
        return A.to(dtype), B.to(dtype)
    (A_hi, A_lo), (B_hi, B_lo) = _halves(A), _halves(B)
    return torch.cat((A_hi, A_lo, A_hi)), torch.cat((B_hi, B_hi, B_lo), 1)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    high = x.bfloat16()
    return high, (x.float() - high.float()).bfloat16()


def _pinned(weight: Tensor) -> Tensor:
    pin = weight.device.type == "cuda"
    return torch.empty_like(weight, device="cpu", pin_memory=pin).copy_(weight)


def _same_dtype(*tensors: Tensor) -> bool:
    return len({tensor.dtype for tensor in tensors}) == 1
