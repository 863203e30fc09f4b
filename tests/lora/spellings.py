"""Files respelled in a style that stock diffusers reads, without lorabake's own tables of names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import small_layouts, tables
from .layouts import Layout

Tensors = dict[str, Tensor]
Spelling = Callable[[Tensors, Layout], Tensors]

_ENDS = {
    ".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight",
    ".lora_A.default.weight": ".lora_A.weight", ".lora_B.default.weight": ".lora_B.weight",
    ".lora_A.weight": ".lora_A.weight", ".lora_B.weight": ".lora_B.weight",
}  # fmt: skip
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "")
_COMPONENTS = {
    "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lora_transformer_": "transformer", "lycoris_": "transformer",
}  # fmt: skip


def unscaled(tensors: Tensors) -> dict[tuple[str, str], Tensor]:
    """Factors by module and PEFT ending; alpha / rank goes into the down factors."""
    factors: dict[tuple[str, str], Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            continue
        end = next(end for end in _ENDS if key.endswith(end))
        stem, peft = key.removesuffix(end), _ENDS[end]
        alpha = tensors.get(f"{stem}.alpha") if peft == ".lora_A.weight" else None
        factors[stem, peft] = tensor if alpha is None else tensor * alpha / tensor.shape[0]
    return factors


def same(tensors: Tensors, layout: Layout) -> Tensors:
    """The file as it is."""
    return dict(tensors)


def in_unet(tensors: Tensors, layout: Layout) -> Tensors:
    """The same keys in the component that they are for."""
    return {f"unet.{key}": tensor for key, tensor in tensors.items()}


def behind(prefix: str) -> Spelling:
    """The same paths behind another prefix."""

    def spell(tensors: Tensors, layout: Layout) -> Tensors:
        return {prefix + _path(m) + end: tensor for (m, end), tensor in unscaled(tensors).items()}

    return spell


def flattened(tensors: Tensors, layout: Layout) -> Tensors:
    """kohya's keys: the same paths with underscores."""
    down = {".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight"}
    return {
        f"lora_unet_{_path(module).replace('.', '_')}{down[end]}": tensor
        for (module, end), tensor in unscaled(tensors).items()
    }


def _path(module: str) -> str:
    return module.removeprefix(next(p for p in _PREFIXES if module.startswith(p)))


def looked_up(tensors: Tensors, layout: Layout) -> Tensors:
    """The path in the model that has such a name when its dots are underscores."""
    paths = {
        (name.component, name.module.replace(".", "_")): str(name)
        for component, model in small_layouts.components(layout).items()
        for name in tables.of(component, model)
    }
    new: Tensors = {}
    for (module, end), tensor in unscaled(tensors).items():
        prefix = next(p for p in _COMPONENTS if module.startswith(p))
        new[paths[_COMPONENTS[prefix], module.removeprefix(prefix)] + end] = tensor
    return new
