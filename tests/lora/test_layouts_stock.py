"""A tiny file in each layout, read by lorabake and loaded by stock diffusers: the same ΔW."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_pipeline
from peft.tuners.lora.layer import Conv2d as LoraConv
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from lorabake.lora import LayerName, read

from . import small_layouts, spellings, tables
from .layouts import LAYOUTS, Layout
from .spellings import Spelling, Tensors

mixins: Any = lora_pipeline

MIXINS: dict[str, Any] = {
    "sd15": mixins.StableDiffusionLoraLoaderMixin,
    "sd2": mixins.StableDiffusionLoraLoaderMixin,
    "sdxl": mixins.StableDiffusionXLLoraLoaderMixin,
    "sd3": mixins.SD3LoraLoaderMixin,
    "flux2": mixins.Flux2LoraLoaderMixin,
    "flux": mixins.FluxLoraLoaderMixin,
    "zimage": mixins.ZImageLoraLoaderMixin,
    "qwen": mixins.QwenImageLoraLoaderMixin,
    "wan": mixins.WanLoraLoaderMixin,
    "lumina2": mixins.Lumina2LoraLoaderMixin,
    "sana": mixins.SanaLoraLoaderMixin,
    "ltx": mixins.LTXVideoLoraLoaderMixin,
    "hidream": mixins.HiDreamImageLoraLoaderMixin,
}

# Stock diffusers reads these names only behind another prefix or with other endings.
SPELLINGS: dict[str, Spelling] = {
    "diffusers_old_sd2": spellings.in_unet,
    "comfyui_diffusers_flux": spellings.behind("transformer."),
    "peft_base_flux": spellings.behind("transformer."),
    "peft_base_sd3": spellings.behind("transformer."),
    "diffsynth_flux2": spellings.behind("transformer."),
    "onetrainer_flux2": spellings.behind("transformer."),
    "onetrainer_qwen": spellings.behind("transformer."),
    "onetrainer_zimage": spellings.behind("transformer."),
    "comfyui_klein_flux2": spellings.behind("diffusion_model."),
    "diffsynth_wan": spellings.behind("diffusion_model."),
    "comfyui_flux": spellings.flattened,
    "fal_flux": spellings.flattened,
    "native_flux": spellings.flattened,
    "comfyui_fused_zimage": spellings.flattened,
    "lycoris_flux": spellings.looked_up,
    "lycoris_qwen": spellings.looked_up,
    "lycoris_sd3": spellings.looked_up,
    "onetrainer_flux": spellings.looked_up,
    "onetrainer_sd3": spellings.looked_up,
}

NOT_LOADED = {
    "comfyui_both_wan": "stock diffusers loads one denoiser at a time",
    "comfyui_sd3": "stock diffusers knows SD3's own names in whole checkpoints only",
    "kohya_sd3": "stock diffusers knows SD3's own names in whole checkpoints only",
    "kohya_sd35_medium": "stock diffusers knows SD3's own names in whole checkpoints only",
    "kohya_sd35_large": "stock diffusers knows SD3's own names in whole checkpoints only",
    "kohya_t5_flux": "stock diffusers has no LoRA for T5",
    "onetrainer_t5_flux": "stock diffusers has no LoRA for T5",
    "onetrainer_pixart": "stock diffusers has no LoRA loader for PixArt",
    "peft_base_pixart": "stock diffusers has no LoRA loader for PixArt",
    "comfyui_a14b_wan": "the same keys as comfyui_wan",
    "musubi_a14b_wan": "the same keys as musubi_wan",
    "diffusers_new_sdxl": "as diffusers_new_sd15",
    "peft_attention_flux": "as peft_flux",
    "peft_sd15": "in test_stock.py",
    "diffusers_old_sd15": "in test_stock.py",
    "diffusers_new_sd15": "in test_stock.py",
    "kohya_sd15": "in test_stock.py",
    "peft_sdxl": "in test_stock.py",
    "kohya_sgm_sdxl": "in test_stock.py",
}

# FLUX: the rows of the fused layer are built into stock diffusers, and layers in no block are lost.
# FLUX.2: the final layer's shift and scale stay in their order, which its model has the other way
# round. test_layouts_native.py has all of these.
WRONG = {
    "flux": r"single_blocks[._]\d+[._]linear1\.|final_layer|(img|txt|time|vector|guidance)_in[._]",
    "flux2": r"final_layer\.adaLN_modulation",
}


def stock(layout: Layout, tensors: Tensors) -> dict[LayerName, Tensor]:
    """ΔW of every layer after the mixin has loaded these tensors into tiny models."""
    mixin = next(mixin for name, mixin in MIXINS.items() if layout.model.startswith(name))
    loader: Any = type("Loader", (mixin,), {"hf_device_map": None})()
    loader.components = copy.deepcopy(small_layouts.components(layout))
    vars(loader).update(dict.fromkeys(("text_encoder", "text_encoder_2")), **loader.components)
    loader.load_lora_weights(tensors)
    return {
        LayerName(component, _lasting(component, path)): module.get_delta_weight("default_0")
        for component, model in loader.components.items()
        for path, module in model.named_modules()
        if isinstance(module, LoraLinear | LoraConv)
    }


def _lasting(component: str, path: str) -> str:
    """transformers has named CLIP's layers with and without `text_model.`; LoRA files have it."""
    clip = component.startswith("text_encoder") and path.startswith("encoder.")
    return f"text_model.{path}" if clip else path


def test_every_exception_is_of_a_layout() -> None:
    assert SPELLINGS.keys() | NOT_LOADED.keys() <= LAYOUTS.keys()
    assert not SPELLINGS.keys() & NOT_LOADED.keys()


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, id=name) for name, layout in LAYOUTS.items() if name not in NOT_LOADED],
)
def test_delta_is_that_of_stock(layout: Layout, tmp_path: Path) -> None:
    wrong = re.compile(WRONG.get(layout.family, "$."))
    tensors = {k: t for k, t in small_layouts.small(layout).items() if not wrong.search(k)}
    lora = read(tables.save(tmp_path / "lora.safetensors", tensors), family=layout.family)
    deltas = stock(layout, SPELLINGS.get(layout.name, spellings.same)(tensors, layout))
    assert deltas.keys() == lora.layers.keys()
    for name, layer in lora.layers.items():
        torch.testing.assert_close(layer.delta(), deltas[name], rtol=1e-5, atol=1e-6)
