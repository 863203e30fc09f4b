"""What users do with PEFT adapters, before a bundle is attached and while it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

Act = Callable[[Any], object]
"""Something done to a pipeline."""

SAME = ["to_q", "to_out.0"]
"""Layers that the bundle has too."""
OTHER = ["conv_in", "proj_in"]
"""Layers that it has not."""


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def add(name: str, targets: list[str], seed: int = 7) -> Act:
    def act(pipe: Any) -> None:
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
        denoiser(pipe).add_adapter(config, name)

    return act


def load(pipe: Any) -> None:
    """A LoRA file's tensors for the attentions, as diffusers names them."""
    g = torch.Generator().manual_seed(11)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    tensors: dict[str, Tensor] = {}
    for path, module in denoiser(pipe).named_modules():
        if isinstance(module, nn.Linear) and path.endswith(("to_q", "to_v")):
            out, width = module.weight.shape
            tensors[f"{name}.{path}.lora_A.weight"] = torch.randn(3, width, generator=g)
            tensors[f"{name}.{path}.lora_B.weight"] = torch.randn(out, 3, generator=g) / 8
    pipe.load_lora_weights(tensors, adapter_name="file")


def both(pipe: Any) -> None:
    add("one", SAME, 7)(pipe)
    add("two", SAME, 8)(pipe)


def idle(_: Any) -> None:
    """Nothing."""


@dataclass(frozen=True)
class Story:
    """What happens before the bundle is attached, and what while it is.

    Attributes:
        live: Whether an adapter has an effect in the end.
        merges: Whether weights are changed, which rounds them.
    """

    before: Act
    during: Act
    live: bool = True
    merges: bool = False


STORIES: dict[str, Story] = {
    "PEFT adapter on its layers": Story(add("one", SAME), idle),
    "PEFT adapter on its layers, added while attached": Story(idle, add("one", SAME)),
    "PEFT adapter on other layers": Story(add("one", OTHER), idle),
    "PEFT adapter on other layers, added while attached": Story(idle, add("one", OTHER)),
    "load_lora_weights": Story(load, idle),
    "load_lora_weights while attached": Story(idle, load),
    "set_adapters, two with weights": Story(
        both, lambda pipe: pipe.set_adapters(["one", "two"], [0.3, 1.2])
    ),
    "set_adapters, one of two": Story(both, lambda pipe: pipe.set_adapters("one")),
    "disable_lora": Story(add("one", SAME), lambda pipe: pipe.disable_lora(), live=False),
    "disable_lora, enable_lora": Story(
        add("one", SAME), lambda pipe: (pipe.disable_lora(), pipe.enable_lora())
    ),
    "delete_adapters": Story(add("one", SAME), lambda p: p.delete_adapters("one"), live=False),
    "unload_lora_weights": Story(load, lambda pipe: pipe.unload_lora_weights(), live=False),
    "fuse_lora": Story(lambda pipe: (load(pipe), pipe.fuse_lora()), idle, merges=True),
    "fuse_lora while attached": Story(load, lambda pipe: pipe.fuse_lora(), merges=True),
    "unet.fuse_lora while attached": Story(load, lambda pipe: pipe.unet.fuse_lora(), merges=True),
    "unfuse_lora while attached": Story(
        lambda pipe: (load(pipe), pipe.fuse_lora()), lambda pipe: pipe.unfuse_lora(), merges=True
    ),
}
