"""The same file in stock diffusers and in lorabake: the same ΔW, layer by layer.

Where stock diffusers is known to be wrong (per-layer alphas of attention layers, FLUX's fused
layers of another width than 3072) the files avoid it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from peft.tuners.lora.layer import Conv2d as LoraConv
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lorabake.lora import LayerName, families, read

from . import tables
from .tables import Known, Shapes

Writer = Callable[[Mapping[LayerName, Known]], dict[str, Tensor]]


def pipeline(kind: str) -> Any:
    classes: dict[str, Any] = {
        "sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline, "flux": FluxPipeline,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False), "vae": None,
        "tokenizer": None,
        "text_encoder": tables.clip(CLIPTextModel, **tables.TINY_CLIP),
    }  # fmt: skip
    if kind == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts |= {"unet": UNet2DConditionModel(**tables.TINY_15), "requires_safety_checker": False}
    else:
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
    if kind == "sdxl":
        parts["unet"] = UNet2DConditionModel(**tables.TINY_XL)
        parts["text_encoder_2"] = tables.clip(CLIPTextModelWithProjection, **tables.TINY_CLIP)
    if kind == "flux":
        parts["transformer"] = FluxTransformer2DModel(**tables.TINY_FLUX)
    return classes[kind](**parts)


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Any]:
    return {kind: pipeline(kind) for kind in ("sd15", "sdxl", "flux")}


def shapes_of(pipe: Any) -> Shapes:
    shapes: Shapes = {}
    for component in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, component, None)
        if model is not None:
            shapes |= tables.of(component, model)
    return shapes


def stock_deltas(pipe: Any, path: Path) -> dict[LayerName, Tensor]:
    """ΔW of every layer, after stock diffusers has loaded the file into a fresh copy."""
    pipe = copy.deepcopy(pipe)
    pipe.load_lora_weights(str(path))
    deltas: dict[LayerName, Tensor] = {}
    for component in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        model = getattr(pipe, component, None)
        named: Any = model.named_modules() if model is not None else ()
        for module_path, module in named:
            if isinstance(module, LoraLinear | LoraConv):
                flat = module_path.startswith("encoder.layers.")
                name = LayerName(component, f"text_model.{module_path}" if flat else module_path)
                deltas[name] = module.get_delta_weight("default_0")
    return deltas


def same(pipe: Any, path: Path) -> None:
    lora, deltas = read(path), stock_deltas(pipe, path)
    assert deltas.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(layer.delta(), deltas[name], rtol=1e-5, atol=1e-6)


def attention(shapes: Shapes) -> Shapes:
    return {name: s for name, s in shapes.items() if "attn" in name.module}


@pytest.mark.parametrize(
    ("kind", "writer", "keep"),
    [
        ("sd15", tables.peft, lambda shapes: shapes),
        ("sd15", tables.diffusers_old, attention),
        ("sd15", tables.diffusers_new, lambda shapes: shapes),
        ("sd15", tables.kohya, lambda shapes: shapes),
        ("sdxl", tables.peft, lambda shapes: shapes),
        ("sdxl", tables.kohya_sgm, lambda shapes: shapes),
        ("flux", tables.peft, lambda shapes: shapes),
    ],
)  # fmt: skip
def test_every_style(
    kind: str,
    writer: Writer,
    keep: Callable[[Shapes], Shapes],
    pipelines: dict[str, Any],
    tmp_path: Path,
) -> None:
    pipe = pipelines[kind]
    known = tables.random_lora(keep(shapes_of(pipe)), ranks=(2,), alphas=(None,))
    same(pipe, tables.save(tmp_path / "lora.safetensors", writer(known)))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
def test_the_key_style_of_bundles(kind: str, pipelines: dict[str, Any], tmp_path: Path) -> None:
    family = families.get(kind)
    tensors: dict[str, Tensor] = {}
    shapes = shapes_of(pipelines[kind])
    for name, known in tables.random_lora(shapes, ranks=(3,), alphas=(None,)).items():
        down, up = family.keys(name)
        tensors |= {down: known.down, up: known.up}
    same(pipelines[kind], tables.save(tmp_path / "lora.safetensors", tensors))


def test_alphas_outside_of_attention(pipelines: dict[str, Any], tmp_path: Path) -> None:
    shapes = shapes_of(pipelines["sd15"])
    shapes = {name: s for name, s in shapes.items() if "resnets" in name.module}
    known = tables.random_lora(shapes, ranks=(2, 3), alphas=(1.0, 5.0, 0.5))
    same(pipelines["sd15"], tables.save(tmp_path / "lora.safetensors", tables.kohya(known)))


@pytest.mark.parametrize("sparse", [False, True])
def test_flux_of_kohya(sparse: bool, pipelines: dict[str, Any], tmp_path: Path) -> None:
    """Without the fused layer of single blocks, whose width is built into stock diffusers."""
    shapes = {
        name: s for name, s in tables.model("tiny flux").items()
        if not ("single" in name.module and ("attn" in name.module or "mlp" in name.module))
        and "transformer_blocks" in name.module
    }  # fmt: skip
    known = tables.random_lora(shapes, ranks=(2,), alphas=(None, 3.0))
    known = known if sparse else tables.fused(known)
    tensors = tables.kohya_flux(known, sparse=sparse)
    same(pipelines["flux"], tables.save(tmp_path / "lora.safetensors", tensors))
