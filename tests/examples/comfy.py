"""The few points of ComfyUI's API that the node uses, around a tiny model with fused layers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Patch = tuple[Any, float]


class Denoiser(nn.Module):
    """A convolution, a fused qkv, a modulation whose halves are the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.ada = nn.Linear(8, 16)
        self.out = nn.Linear(8, 3)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory")
        h = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + (q @ k.transpose(1, 2)).softmax(-1) @ v
        shift, scale = self.ada(h.mean(1, keepdim=True)).chunk(2, -1)
        return self.out(h * (1 + scale) + shift)


class OwnLinear(nn.Module):
    """What ComfyUI has for 8-bit models: like a linear layer of torch, but not one."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = of.in_features, of.out_features
        self.weight, self.bias = of.weight, of.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def swapped(weight: Tensor) -> Tensor:
    """As ComfyUI turns a modulation of diffusers into its own."""
    return torch.cat(weight.chunk(2)[::-1])


DENOISER: dict[str, Any] = {
    "conv": "diffusion_model.conv.weight",
    "attn.to_q": ("diffusion_model.qkv.weight", (0, 0, 8)),
    "attn.to_k": ("diffusion_model.qkv.weight", (0, 8, 8)),
    "attn.to_v": ("diffusion_model.qkv.weight", (0, 16, 8)),
    "norm.linear": ("diffusion_model.ada.weight", None, swapped),
    "out": "diffusion_model.out.weight",
}
"""Where the layers of a diffusers model are in this one."""
TEXT: dict[str, Any] = {"layers.0": "clip.0.weight", "layers.1": "clip.1.weight"}


def diffusers_view() -> nn.Module:
    """A module with the shapes and names that diffusers has for the same layers."""
    root = nn.Module()
    root.conv, root.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
    root.attn, root.norm = nn.Module(), nn.Module()
    for name in ("to_q", "to_k", "to_v"):
        root.attn.add_module(name, nn.Linear(8, 8))
    root.norm.linear = nn.Linear(8, 16)
    return root


def model() -> nn.Module:
    """What a MODEL of ComfyUI wraps."""
    torch.manual_seed(0)
    root = nn.Module()
    root.diffusion_model = Denoiser()
    return root.double().requires_grad_(requires_grad=False)


def text_model() -> nn.Module:
    torch.manual_seed(1)
    root = nn.Module()
    root.clip = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    return root.double().requires_grad_(requires_grad=False)


class Patcher:
    """ModelPatcher and CLIP in one: patches change weights, wrappers stand around each call."""

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        self.cond_stage_model = model
        self.patches: list[tuple[Any, Any]] = []
        self.wrappers: dict[str, list[Callable[..., Tensor]]] = {}

    def clone(self) -> Patcher:
        other = Patcher(self.model)
        other.patches = [*self.patches]
        other.wrappers = {key: [*found] for key, found in self.wrappers.items()}
        return other

    def add_patches(self, patches: dict[Any, Any]) -> None:
        self.patches += patches.items()

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Tensor]) -> None:
        self.wrappers.setdefault(kind, []).append(wrapper)

    def weights(self) -> dict[str, Tensor]:
        """All weights with the patches in them."""
        found = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        for key, delta in self.patches:
            add(found, key, delta)
        return found

    def apply_model(self, x: Tensor, sigma: float, options: dict[str, Any]) -> Tensor:
        wrappers = self.wrappers.get("apply_model", [])

        def inner(x: Tensor, *_: Any, **__: Any) -> Tensor:
            weights = {k.partition(".")[2]: v for k, v in self.weights().items()}
            return torch.func.functional_call(self.model.diffusion_model, weights, (x,))

        def call(i: int) -> Callable[..., Tensor]:
            if i == len(wrappers):
                return inner
            return lambda *args, **kwargs: wrappers[i](call(i + 1), *args, **kwargs)

        return call(0)(x, torch.full((len(x),), sigma), None, None, None, options)


def add(weights: dict[str, Tensor], key: Any, delta: Tensor) -> None:
    """Add ΔW to a weight, or to the part of one that the key names."""
    name, part, function = _parts(key)
    weight = weights[name] if part is None else weights[name].narrow(*part)
    weight += delta if function is None else function(delta)


def _parts(key: Any) -> tuple[str, Any, Any]:
    if isinstance(key, str):
        return key, None, None
    return key if len(key) == 3 else (*key, None)


def _load_lora(tensors: dict[str, Tensor], names: dict[str, Any]) -> dict[Any, Tensor]:
    left = dict(tensors)
    found: dict[Any, Tensor] = {}
    for stem, key in names.items():
        if f"{stem}.lora_A.weight" in left:
            down, up = left.pop(f"{stem}.lora_A.weight"), left.pop(f"{stem}.lora_B.weight")
            product = up.flatten(1).double() @ down.flatten(1).double()
            found[key] = product.reshape(len(up), *down.shape[1:])
    assert not left, "ComfyUI would have dropped these"
    return found


def install(
    monkeypatch: pytest.MonkeyPatch, loras: Path, keys: dict[str, Any], texts: dict[str, Any]
) -> None:
    """Put the stub where `import comfy` and `import folder_paths` find it."""
    comfy, lora, extension, folders = (
        ModuleType(name)
        for name in ("comfy", "comfy.lora", "comfy.patcher_extension", "folder_paths")
    )
    wanted: Any = type("WrappersMP", (), {"APPLY_MODEL": "apply_model"})
    vars(extension)["WrappersMP"] = wanted
    vars(lora).update(
        model_lora_keys_unet=lambda model, found: found | keys,
        model_lora_keys_clip=lambda model, found: found | texts,
        load_lora=_load_lora,
    )
    vars(comfy).update(lora=lora, patcher_extension=extension)
    vars(folders).update(
        get_filename_list=lambda kind: sorted(path.name for path in loras.iterdir()),
        get_full_path_or_raise=lambda kind, name: str(loras / name),
    )
    for module in (comfy, lora, extension, folders):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def custom_node(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Import a folder of custom_nodes as ComfyUI does."""
    name = f"custom_nodes_{folder.name}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for old in [key for key in sys.modules if key.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, old)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
