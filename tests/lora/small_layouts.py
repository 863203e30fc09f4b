"""The layouts made small: the same keys for tiny models of the same classes, with random factors.

Of each stack of blocks the first and the last one are kept, as blocks 0 and 1; of a UNet, which is
not one stack, every level with one resnet, one attention and one transformer layer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from . import tables
from .layouts import Layout

lib: Any = diffusers

_STACK = re.compile(r"(.*?(?:blocks|block|layers|refiner)[._])(\d+)(?=[._])")
_DEEPER = re.compile(r"(transformer_blocks|attentions|resnets)[._][1-9]")
_TEXT = {768: 12, 3072: 48, 1280: 16, 5120: 64, 1024: 12, 4096: 48}
_RANKS = {4: 1, 8: 1, 16: 2, 32: 4, 48: 6, 64: 8}
_UNET = {width: width // 40 for width in (320, 640, 1280, 2560, 5120, 10240)}
_WAN = {256: 8, 4096: 12, 64: 16, 1280: 20}

SIZES: dict[str, dict[int, int]] = {
    "sd15": _UNET | {768: 12},
    "sd2": _UNET | {1024: 12},
    "sdxl": _UNET | {2048: 12},
    "sd3-medium": {1536: 16, 4096: 12, 2048: 8, 256: 256, 64: 16, 16: 4},
    "sd35-medium": {1536: 16},
    "sd35-large": {2432: 16, 4096: 12, 2048: 8, 256: 256, 64: 16, 16: 4},
    "flux": {3072: 16, 4096: 12, 768: 8, 256: 256, 64: 4},
    "flux2-dev": {6144: 16},
    "flux2-klein-9b": {4096: 16, 128: 4, 256: 8, 12288: 48},
    "flux2-klein-4b": {3072: 16},
    "zimage": {3840: 48, 10240: 128, 256: 48},
    "qwen": {3072: 16, 3584: 12, 256: 256, 64: 4},
    "wan21-t2v-1.3b": {1536: 16, 8960: 24},
    "wan21-t2v-14b": {5120: 16, 13824: 24},
    "wan21-i2v-14b": {5120: 16, 13824: 24} | _WAN,
    "wan22-a14b": {5120: 16, 13824: 24},
    "wan22-ti2v-5b": {3072: 16, 14336: 24},
    "lumina2": {2304: 24, 768: 8, 1024: 24},
    "pixart": {1152: 16},
    "sana": {2240: 16},
    "ltx": {2048: 16},
    "hidream": {2560: 16},
}
"""Width in the published model → in the tiny one. Multiples of a width go with it."""


def small(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """A tiny file in this layout."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for key, shape in _kept(layout).items():
        if not shape:
            tensors[key] = torch.tensor(0.75)
            continue
        sizes = _TEXT if re.match(r"lora_te|text_encoder", key) else SIZES[layout.model]
        down = ".lora_A." in key or "down." in key
        rank, width = shape[:2] if down else shape[1::-1]
        pair = (_RANKS[rank], _scaled(width, sizes))
        tensors[key] = torch.randn(*(pair if down else pair[::-1]), *shape[2:], generator=random)
    return tensors


def _scaled(width: int, sizes: Mapping[int, int]) -> int:
    if width in sizes:
        return sizes[width]
    return next(width // real * tiny for real, tiny in sizes.items() if width % real == 0)


def _kept(layout: Layout) -> dict[str, tuple[int, ...]]:
    if layout.model in ("sd15", "sd2", "sdxl"):
        keys = {key: key for key in layout.shapes if not _DEEPER.search(key)}
        texts = {key: new for key, new in edges(layout).items() if re.match(r"lora_te|text_", key)}
        keys = {k: k for k in keys if not re.match(r"lora_te|text_", k)} | texts
    else:
        keys = edges(layout)
    return {new: layout.shapes[key] for key, new in keys.items()}


def edges(layout: Layout) -> dict[str, str]:
    """Keys outside of blocks, and of each stack's first and last block, which gets number 1."""
    stacks: dict[str, int] = {}
    found = {key: match for key in layout.shapes if (match := _STACK.match(key))}
    for match in found.values():
        stacks[match[1]] = max(stacks.get(match[1], 0), int(match[2]))
    kept: dict[str, str] = {}
    for key in layout.shapes:
        match = found.get(key)
        if match is None or match[2] == "0":
            kept[key] = key
        elif int(match[2]) == stacks[match[1]]:
            kept[key] = f"{match[1]}1{key[match.end(2) :]}"
    return kept


def _clip(kind: Any, width: int) -> nn.Module:
    return tables.clip(
        kind, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=width, vocab_size=50, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip


def _unet(levels: tuple[int, ...], **config: Any) -> nn.Module:
    return lib.UNet2DConditionModel(
        block_out_channels=levels, layers_per_block=1, cross_attention_dim=12, attention_head_dim=4,
        norm_num_groups=4, **config,
    )  # fmt: skip


def _sdxl() -> dict[str, nn.Module]:
    config = tables.XL_BLOCKS | {
        "transformer_layers_per_block": 1, "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 28,
    }  # fmt: skip
    del config["block_out_channels"], config["cross_attention_dim"], config["attention_head_dim"]
    return {
        "unet": _unet((8, 16, 32), **config),
        "text_encoder": _clip(CLIPTextModel, 12),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 16),
    }


def _sd3(**config: Any) -> dict[str, nn.Module]:
    transformer = lib.SD3Transformer2DModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8,
        out_channels=4, pos_embed_max_size=8, **config,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "text_encoder": _clip(CLIPTextModelWithProjection, 12),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 16),
    }


def _flux() -> dict[str, nn.Module]:
    transformer = lib.FluxTransformer2DModel(**tables.TINY_FLUX)
    return {"transformer": transformer, "text_encoder": _clip(CLIPTextModel, 12)}


def _flux2(**config: Any) -> dict[str, nn.Module]:
    transformer = lib.Flux2Transformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2), **config,
    )  # fmt: skip
    return {"transformer": transformer}


def _wan(**config: Any) -> dict[str, nn.Module]:
    transformer = lib.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=8, ffn_dim=24, num_layers=2, **config,
    )  # fmt: skip
    return {"transformer": transformer}


def _one(kind: str, **config: Any) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {"transformer": getattr(lib, kind)(**config)}


_MODELS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "sd15": lambda: {"unet": _unet((8, 16, 32, 32)), "text_encoder": _clip(CLIPTextModel, 12)},
    "sd2": lambda: {
        "unet": _unet((8, 16, 32, 32), use_linear_projection=True),
        "text_encoder": _clip(CLIPTextModel, 12),
    },
    "sdxl": _sdxl,
    "sd35-medium": lambda: _sd3(dual_attention_layers=(0,)),
    "sd3": _sd3,
    "flux2": _flux2,
    "flux": _flux,
    "zimage": _one(
        "ZImageTransformer2DModel", in_channels=4, dim=48, n_layers=2, n_heads=2, n_kv_heads=2,
        cap_feat_dim=12, axes_dims=[8, 8, 8], axes_lens=[8, 8, 8],
    ),
    "qwen": _one(
        "QwenImageTransformer2DModel", in_channels=4, out_channels=1, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    ),
    "wan21-i2v": lambda: _wan(image_dim=20, added_kv_proj_dim=16),
    "wan": _wan,
    "lumina2": _one(
        "Lumina2Transformer2DModel", in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=2, num_attention_heads=3, num_kv_heads=1, multiple_of=8,
        axes_dim_rope=(2, 2, 4), axes_lens=(8, 8, 8), cap_feat_dim=12,
    ),
    "pixart": _one(
        "PixArtTransformer2DModel", num_attention_heads=2, attention_head_dim=8, num_layers=2,
        cross_attention_dim=16, sample_size=8, caption_channels=12,
    ),
    "sana": _one(
        "SanaTransformer2DModel", in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
    ),
    "ltx": _one(
        "LTXVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
        attention_head_dim=8, cross_attention_dim=16, num_layers=2, caption_channels=12,
    ),
    "hidream": _one(
        "HiDreamImageTransformer2DModel", patch_size=2, in_channels=4, num_layers=2,
        num_single_layers=2, attention_head_dim=8, num_attention_heads=2, caption_channels=[8, 8],
        text_emb_dim=8, axes_dims_rope=(4, 4), max_resolution=(8, 8), llama_layers=[0, 1, 2, 3],
    ),
}  # fmt: skip


def components(layout: Layout) -> dict[str, nn.Module]:
    """Tiny models of the classes that the layout's model is made of; not to be changed."""
    return _built(next(name for name in _MODELS if layout.model.startswith(name)))


@functools.cache
def _built(name: str) -> dict[str, nn.Module]:
    return _MODELS[name]()
