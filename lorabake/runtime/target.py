"""A layer of a pipeline, and what stands around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

Patchable = nn.Linear | nn.Conv2d

_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True)
class Target:
    """One layer that a bundle changes.

    Attributes:
        module: What computes W0·x.
        inside: The modules that contain it, outermost first; what PEFT wraps around it is not
            among them.
        name: Its name in the innermost one, or that of its wrapper.
    """

    module: Patchable
    inside: tuple[nn.Module, ...]
    name: str

    def wrappers(self) -> Iterator[nn.Module]:
        """What PEFT has put around it up to now, outermost first."""
        found = getattr(self.inside[-1], self.name, None)
        while isinstance(found, nn.Module) and found is not self.module:
            yield found
            found = getattr(found, "base_layer", None)

    def around(self) -> Iterator[nn.Module]:
        """All modules that have it inside, and itself."""
        yield from self.inside
        yield from self.wrappers()
        yield self.module

    @property
    def replaced(self) -> bool:
        """Whether another layer stands in its place now."""
        return unwrapped(getattr(self.inside[-1], self.name, self.inside[-1])) is not self.module

    @property
    def dora(self) -> bool:
        """Whether an adapter computes with its weight, beside what the layer computes."""
        return any(len(getattr(w, "lora_magnitude_vector", ())) > 0 for w in self.wrappers())

    def merged(self) -> int:
        """How many adapters PEFT has merged into its weight."""
        return sum(len(getattr(wrapper, "merged_adapters", ())) for wrapper in self.wrappers())

    @property
    def is_projection(self) -> bool:
        """Whether `fuse_qkv_projections` may bypass it."""
        return self.name in _PROJECTIONS

    def bypassed(self) -> bool:
        """Whether diffusers computes it elsewhere, since `fuse_qkv_projections`."""
        attention = self.inside[-1]
        if not self.is_projection or not getattr(attention, "fused_projections", False):
            return False
        # The older class keeps the flag when it is undone, and only its processor tells.
        processor = type(getattr(attention, "processor", None)).__name__
        return type(attention).__name__ != "Attention" or processor.startswith("Fused")

    def group_offloading(self) -> object:
        """The configuration of diffusers' group offloading that moves it; None if none does."""
        for module in self.around():
            registry = getattr(module, "_diffusers_hook", None)
            if registry is not None and (hook := registry.get_hook("group_offloading")) is not None:
                return hook.config
        return None


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer itself; PEFT puts its wrapper in the place of the layer that it adapts."""
    while isinstance(base := getattr(module, "base_layer", None), nn.Module):
        module = base
    return module
