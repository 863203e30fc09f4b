"""Names of models' own code: the rows of each module go where diffusers' readers of checkpoints
put the rows of its weights, at the real sizes, shifts and scales included.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from lorabake.lora import LayerName, dialects, factors

from . import small_layouts
from .layouts import LAYOUTS, Layout

converters: Any = single_file_utils

CONVERTERS: dict[str, Any] = {
    "flux": converters.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": converters.convert_flux2_transformer_checkpoint_to_diffusers,
    "sd3": converters.convert_sd3_transformer_checkpoint_to_diffusers,
    "wan": converters.convert_wan_transformer_to_diffusers,
    "zimage": converters.convert_z_image_transformer_checkpoint_to_diffusers,
}
DOTTED = {
    "flux": "native_flux", "flux2": "comfyui_klein_flux2", "sd3": "comfyui_sd3",
    "wan": "comfyui_i2v_wan", "zimage": "comfyui_fused_zimage",
}  # fmt: skip
"""Layouts that have every module of their family under its own name."""
NATIVE = (
    "comfyui_5b_wan", "comfyui_a14b_wan", "comfyui_alpha_wan", "comfyui_clip_flux",
    "comfyui_flux", "comfyui_flux2", "comfyui_fused_zimage", "comfyui_i2v_wan",
    "comfyui_klein_flux2", "comfyui_sd3", "comfyui_wan", "diffsynth_wan", "fal_flux", "fal_flux2",
    "kohya_flux", "kohya_sd3", "kohya_sd35_large", "kohya_sd35_medium", "kohya_t5_flux",
    "musubi_a14b_wan", "musubi_flux2", "musubi_fused_zimage", "musubi_i2v_wan",
    "musubi_kontext_flux", "musubi_wan", "native_flux",
)  # fmt: skip

NOTHING = torch.full((), torch.nan).expand(21504, 1)
"""A weight that is not there; with as many rows as the converters cut anywhere."""

_PREFIX = re.compile(r"base_model\.model\.|diffusion_model\.|lora_unet_")
_END = re.compile(r"\.lora_(up|B)(\.default)?\.weight$")


class Partial(dict[str, Tensor]):
    """A checkpoint of which only a part is there."""

    def pop(self, key: str, *_: object) -> Tensor:
        return super().pop(key) if key in self else NOTHING


def outer_blocks(layout: Layout) -> dict[str, Tensor]:
    """The denoiser's first and last blocks and what is in no block, of rank 1."""
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key in small_layouts.edges(layout):
        shape = layout.shapes[key]
        if re.match(r"lora_te|text_encoder", key):
            continue
        if _END.search(key):
            tensors[key] = torch.randn(shape[0], 1, *shape[2:], generator=random)
        else:
            tensors[key] = torch.ones(()).expand(1, *shape[1:]) if shape else torch.ones(())
    return tensors


def path(module: str, family: str) -> str:
    """The module's path with dots, looked up among those of the same family but for one number."""
    module = _PREFIX.sub("", module)
    if "." in module or module in ("img_in", "txt_in", "context_embedder"):
        return module
    number = re.search(r"\d+", module)
    return _dotted(family)[_numberless(module)].replace("#", number[0] if number else "")


@functools.cache
def _dotted(family: str) -> dict[str, str]:
    stems = {_PREFIX.sub("", _END.sub("", key)) for key in LAYOUTS[DOTTED[family]].shapes}
    return {_numberless(stem).replace(".", "_"): _numberless(stem) for stem in stems}


def _numberless(stem: str) -> str:
    return re.sub(r"\d+", "#", stem, count=1)


@pytest.mark.parametrize("name", NATIVE)
def test_rows_go_where_those_of_a_checkpoint_go(name: str) -> None:
    layout = LAYOUTS[name]
    tensors = outer_blocks(layout)
    weights = Partial()
    for key, tensor in tensors.items():
        if _END.search(key):
            weights[f"{path(_END.sub('', key), layout.family)}.weight"] = tensor
    if layout.family == "sd3":
        weights.setdefault("context_embedder.weight", NOTHING)
    converted = CONVERTERS[layout.family](weights)

    dialect = next(d for d in dialects.MEMBERS if d.name == layout.dialect)
    layers = factors.assemble(dialect, factors.split(dialect, tensors, name), tensors, {}, name)
    expected = {
        LayerName("transformer", key.removesuffix(".weight")): rows
        for key, rows in converted.items()
        if not rows.isnan().any()
    }
    assert layers.keys() == expected.keys()
    for layer, rows in expected.items():
        assert torch.equal(layers[layer].up, rows)
