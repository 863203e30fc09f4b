"""A tiny random world: a model of 16 × 16 pixels, LoRAs with trigger words, encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from lorabake import Setup

from .. import bases, encoders, tiny
from ..oracle import write_lora

PROMPTS = ("a cat in ink", "a fat cat in ink")
SETUP: dict[str, Any] = {"seeds": 3, "steps": 1, "guidance": 2.0}


def world(folder: Path) -> Path:
    """`model`, `cat`, `dog`, `ink`, `oil` (LoRAs), `clip`, `dino`, `csd`, all in one folder."""
    bases.save("sd15", folder / "model")
    shapes = {n: s for n, s in tiny.shapes(bases.sd15()).items() if "attn" in n}
    for seed, (name, word) in enumerate(
        (("cat", "cat"), ("dog", "dog"), ("ink", "ink style"), ("oil", "oil style"))
    ):
        path = folder / f"{name}.safetensors"
        write_lora(path, shapes, "peft", seed)
        tensors = {k: 3 * v if "lora_B" in k else v for k, v in load_file(path).items()}
        save_file(tensors, path, {"modelspec.trigger_phrase": word})
    whole_clip(folder / "clip")
    encoders.save("dino", folder / "dino")
    descriptor().save_pretrained(folder / "csd")
    return folder


def whole_clip(folder: Path) -> None:
    """CLIP with both towers and a tokenizer."""
    torch.manual_seed(21)
    text = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 54,
        "num_attention_heads": 1, "max_position_embeddings": 16, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    model: Any = CLIPModel(
        CLIPConfig(text_config=text, vision_config=encoders.SHAPE, projection_dim=10)
    )
    lively(model).save_pretrained(folder)
    bases.clip_tokenizer().save_pretrained(folder)
    mean, std = encoders.STATISTICS["clip"]
    told = {"image_processor_type": "CLIPImageProcessor", "image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def descriptor() -> Any:
    """A style descriptor with the width of one of CLIP's heads."""
    torch.manual_seed(22)
    shape: dict[str, Any] = encoders.SHAPE | {"hidden_size": 64, "num_attention_heads": 1}
    shape |= {"projection_dim": 12, "hidden_act": "quick_gelu"}
    config = CLIPVisionConfig(**shape)
    return lively(CLIPVisionModelWithProjection(config))


def lively(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def port(model: Any, folder: Path) -> None:
    """The same under the names of CSD's release, as its ports to safetensors have them."""
    own: dict[str, Tensor] = {
        k.removeprefix("vision_model."): v for k, v in model.state_dict().items()
    }
    found = {
        "class_embedding": own["embeddings.class_embedding"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
    }
    for part in ("weight", "bias"):
        found[f"ln_pre.{part}"] = own[f"pre_layrnorm.{part}"]
        found[f"ln_post.{part}"] = own[f"post_layernorm.{part}"]
        for i in range(model.config.num_hidden_layers):
            layer, block = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            found[f"{block}.attn.in_proj_{part}"] = torch.cat(
                [own[f"{layer}.self_attn.{x}_proj.{part}"] for x in "qkv"]
            )
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                found[f"{block}.{theirs}.{part}"] = own[f"{layer}.{ours}.{part}"]
    tensors = {f"backbone.{k}": v for k, v in found.items()}
    tensors["last_layer_style"] = own["visual_projection.weight"].T
    tensors["last_layer_content"] = torch.zeros_like(tensors["last_layer_style"])
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")


def setup(folder: Path, **given: Any) -> Setup:
    """With the encoders of the world."""
    names: dict[str, Any] = {role: str(folder / role) for role in ("clip", "dino", "csd")}
    return Setup(**{**SETUP, **names, **given})
