"""Tiny random image encoders as folders of transformers, 16 × 16 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

SIZE = 16
STATISTICS = {"clip": ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]), "dino": ([0.5] * 3, [0.3, 0.4, 0.5])}
SHAPE: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIZE, "patch_size": 8, "initializer_range": 0.3,
}  # fmt: skip


def clip() -> Any:
    torch.manual_seed(11)
    model: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, projection_dim=12))
    return _lively(model)


def whole_clip() -> Any:
    """With its text tower."""
    torch.manual_seed(12)
    text = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9,
        "num_attention_heads": 1, "max_position_embeddings": 4, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=SHAPE, projection_dim=10)
    return _lively(CLIPModel(config))


def dino() -> Any:
    torch.manual_seed(13)
    return _lively(ViTModel(ViTConfig(**SHAPE), add_pooling_layer=False))


def _lively(model: Any) -> Any:
    """Biases and class tokens that are not 0, so that images far apart are embedded far apart."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save(role: str, folder: Path) -> Path:
    """Write an encoder with its statistics; `clip` or `dino`."""
    {"clip": clip, "dino": dino}[role]().save_pretrained(folder)
    kind = {"clip": "CLIPImageProcessor", "dino": "ViTImageProcessor"}[role]
    mean, std = STATISTICS[role]
    told = {"image_processor_type": kind, "image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder
