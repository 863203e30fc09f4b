"""Key → shape tables of real files (`layouts/*.json`), and the models that they are for.

A key of a table stands for several: `{0-18}` for the numbers 0 to 18, `{q,k,v}` for each of these.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from . import tables
from .tables import Shapes

lib: Any = diffusers

_BRACES = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class Layout:
    """One table.

    Attributes:
        name: The file's name.
        dialect: Which dialect it is in, as lorabake calls it.
        family: Which family it is for.
        shapes: Shape of each tensor; an alpha has none.
        model: The published model whose layers these are, one of `MODELS`.
    """

    name: str
    dialect: str
    family: str
    model: str
    shapes: dict[str, tuple[int, ...]]

    def tensors(self) -> dict[str, Tensor]:
        """Ones in the real shapes, each in the storage of a single number."""
        return {key: torch.ones(()).expand(shape) for key, shape in self.shapes.items()}


def expanded(key: str) -> list[str]:
    """The keys that a key with braces stands for."""
    parts = _BRACES.split(key)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(braces: str) -> list[str]:
    if match := re.fullmatch(r"(\d+)-(\d+)", braces):
        return [str(number) for number in range(int(match[1]), int(match[2]) + 1)]
    return braces.split(",")


def _load(path: Path) -> Layout:
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    keys = [(key, tuple(shape)) for row, shape in table["tensors"].items() for key in expanded(row)]
    if len(keys) != len(dict(keys)):
        raise ValueError(f"{path.name} has a key twice")
    return Layout(path.stem, table["dialect"], table["family"], table["model"], dict(keys))


LAYOUTS = {
    path.stem: _load(path) for path in sorted(Path(__file__).with_name("layouts").glob("*.json"))
}


@functools.cache
def _clip(kind: Any, layers: int, width: int) -> nn.Module:
    return tables.clip(
        kind, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        projection_dim=width,
    )  # fmt: skip


@functools.cache
def _t5() -> nn.Module:
    return T5EncoderModel(
        T5Config(
            d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu", vocab_size=8,
        )
    )  # fmt: skip


def _transformer(kind: str, **config: Any) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"transformer": getattr(lib, kind)(**config)}


def _sd(width: int, layers: int, *, flat: bool) -> dict[str, nn.Module]:
    return {
        "unet": lib.UNet2DConditionModel(cross_attention_dim=width, use_linear_projection=flat),
        "text_encoder": _clip(CLIPTextModel, layers, width),
    }


def _sdxl() -> dict[str, nn.Module]:
    return {
        "unet": lib.UNet2DConditionModel(**tables.XL_BLOCKS),
        "text_encoder": _clip(CLIPTextModel, 12, 768),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 32, 1280),
    }


def _sd3(layers: int, heads: int, **config: Any) -> dict[str, nn.Module]:
    transformer = lib.SD3Transformer2DModel(
        num_layers=layers, num_attention_heads=heads, caption_projection_dim=64 * heads, **config
    )
    return {
        "transformer": transformer,
        "text_encoder": _clip(CLIPTextModelWithProjection, 12, 768),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 32, 1280),
    }


def _flux() -> dict[str, nn.Module]:
    return {
        "transformer": lib.FluxTransformer2DModel(guidance_embeds=True),
        "text_encoder": _clip(CLIPTextModel, 12, 768),
        "text_encoder_2": _t5(),
    }


def _klein(heads: int, layers: int, single: int, text: int) -> dict[str, nn.Module]:
    transformer = lib.Flux2Transformer2DModel(
        num_attention_heads=heads, num_layers=layers, num_single_layers=single,
        joint_attention_dim=text, guidance_embeds=False,
    )  # fmt: skip
    return {"transformer": transformer}


@functools.cache
def _wan(heads: int, feed_forward: int, layers: int, **config: Any) -> nn.Module:
    return lib.WanTransformer3DModel(
        num_attention_heads=heads, ffn_dim=feed_forward, num_layers=layers, **config
    )


def _wan_i2v() -> dict[str, nn.Module]:
    images: dict[str, Any] = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
    return {"transformer": _wan(40, 13824, 40, **images)}


MODELS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "sd15": lambda: _sd(768, 12, flat=False),
    "sd2": lambda: _sd(1024, 23, flat=True),
    "sdxl": _sdxl,
    "sd3-medium": lambda: _sd3(24, 24),
    "sd35-medium": lambda: _sd3(24, 24, dual_attention_layers=tuple(range(13))),
    "sd35-large": lambda: _sd3(38, 38),
    "flux": _flux,
    "flux2-dev": _transformer("Flux2Transformer2DModel"),
    "flux2-klein-9b": lambda: _klein(32, 8, 24, 12288),
    "flux2-klein-4b": lambda: _klein(24, 5, 20, 7680),
    "zimage": _transformer("ZImageTransformer2DModel"),
    "qwen": _transformer("QwenImageTransformer2DModel"),
    "wan21-t2v-1.3b": lambda: {"transformer": _wan(12, 8960, 30)},
    "wan21-t2v-14b": lambda: {"transformer": _wan(40, 13824, 40)},
    "wan21-i2v-14b": _wan_i2v,
    "wan22-a14b": lambda: dict.fromkeys(("transformer", "transformer_2"), _wan(40, 13824, 40)),
    "wan22-ti2v-5b": lambda: {
        "transformer": _wan(24, 14336, 30, in_channels=48, out_channels=48)
    },
    "lumina2": _transformer("Lumina2Transformer2DModel", cap_feat_dim=2304),
    "pixart": _transformer("PixArtTransformer2DModel", caption_channels=4096),
    "sana": _transformer("SanaTransformer2DModel"),
    "ltx": _transformer("LTXVideoTransformer3DModel"),
    "hidream": _transformer(
        "HiDreamImageTransformer2DModel", patch_size=2, in_channels=16,
        caption_channels=[4096, 4096], llama_layers=list(range(48)),
    ),
}  # fmt: skip
"""Published configurations, by component."""


@functools.cache
def model(name: str) -> Shapes:
    """Weight shape of every layer of a published model; it is built without weights."""
    with torch.device("meta"):
        components = MODELS[name]()
    shapes: Shapes = {}
    for component, module in components.items():
        shapes |= tables.of(component, module)
    return shapes
