"""CSD (arXiv 2404.01292), the style descriptor: a ViT-L/14 of CLIP with a head for style.

Its release is a pickle, which is not opened. Ports to safetensors hold the release's tensors under
the names of OpenAI's CLIP; they are read here. Folders of transformers with a
`CLIPVisionModelWithProjection`, whose projection is the head, are encoders like any other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import BaseModelError
from ..place import expanded, kind
from . import encoders
from .blame import blame
from .embed import Encoder

CSD = "yuxi-liu-wired/CSD"
"""A port of ViT-L to safetensors."""

_WEIGHTS, _HEAD = "model.safetensors", "last_layer_style"
_HEAD_WIDTH = 64
"""Of an attention head, in all of CLIP's models."""
_PLAIN = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    **{f"ln_pre.{x}": f"pre_layrnorm.{x}" for x in ("weight", "bias")},
    **{f"ln_post.{x}": f"post_layernorm.{x}" for x in ("weight", "bias")},
}
_IN_BLOCK = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def load(name: str | Path, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Encoder:
    """Load a style descriptor, from safetensors only.

    Args:
        name: Folder or id on the Hugging Face hub: a port of CSD, or what `encoders.load` takes.
        device: Where it goes.
        dtype: Of its weights.

    Raises:
        BaseModelError: There is no such folder, it is damaged or not an image encoder, has its
            weights as a pickle, or the hub cannot be reached.
    """
    weights = _port(name)
    if weights is None:
        return encoders.load(name, device=device, dtype=dtype)
    with blame(
        "cannot be loaded as a style descriptor",
        where=str(name),
        advice="Save or download it again, or name another",
    ):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        from transformers.utils import constants

        found = {k.removeprefix("model."): v for k, v in load_file(weights).items()}
        state, shape = _translated(found)
        model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape))
        own = model.state_dict()
        bare = not any(key.startswith("vision_model.") for key in own)
        named = {k.removeprefix("vision_model.") if bare else k: v for k, v in state.items()}
        model.load_state_dict(named, strict=False)
        if lacks := sorted(k for k in own.keys() - named.keys() if "position_ids" not in k):
            raise BaseModelError(f"lacks the weights of {lacks[0]}", where=str(name))
        statistics = (list(constants.OPENAI_CLIP_MEAN), list(constants.OPENAI_CLIP_STD))
        return Encoder(model.to(device, dtype), True, int(shape["image_size"]), statistics)


def digest(name: str | Path) -> str:
    """Hex SHA-256 of a style descriptor's weights; see `encoders.digest`."""
    if (weights := _port(name)) is None:
        return encoders.digest(name)
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _port(name: str | Path) -> Path | None:
    """The weights of a port; None for anything else."""
    if kind(name) is not None:
        path = expanded(name) / _WEIGHTS
    elif str(name) == CSD:
        with blame("cannot be fetched", where=str(name), advice="Check the connection"):
            from transformers.utils.hub import cached_file

            path = Path(str(cached_file(str(name), _WEIGHTS)))
    else:
        return None
    try:
        with safe_open(path, "pt") as file:
            keys = file.keys()
    except Exception:  # whatever it is, it is no port
        return None
    return path if any(key.removeprefix("model.") == _HEAD for key in keys) else None


def _translated(found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A port's tensors under the names of transformers, and the model's shape."""
    own = {k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")}
    state = {f"vision_model.{new}": own[old] for old, new in _PLAIN.items()}
    blocks = {int(key.split(".")[2]) for key in own if key.startswith("transformer.resblocks.")}
    for i in blocks:
        start, end = f"transformer.resblocks.{i}", f"vision_model.encoder.layers.{i}"
        for part in ("weight", "bias"):
            state |= {f"{end}.{b}.{part}": own[f"{start}.{a}.{part}"] for a, b in _IN_BLOCK.items()}
            thirds = own[f"{start}.attn.in_proj_{part}"].chunk(3)
            for letter, third in zip("qkv", thirds, strict=True):
                state[f"{end}.self_attn.{letter}_proj.{part}"] = third
    head = found[_HEAD]
    state["visual_projection.weight"] = head.T.contiguous()
    width, _, patch, _ = own["conv1.weight"].shape
    inner = len(own["transformer.resblocks.0.mlp.c_fc.bias"])
    side = math.isqrt(len(own["positional_embedding"]) - 1)
    return state, {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(blocks),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "patch_size": patch, "image_size": side * patch, "projection_dim": head.shape[1],
        "hidden_act": "quick_gelu",
    }  # fmt: skip
