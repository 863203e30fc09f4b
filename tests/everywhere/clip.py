"""A tiny text encoder of CLIP's kind, and words for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def clip(seed: int = 3) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def words(folder: Path) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [letter + end for letter in "abcdefghijklmnopqr" for end in ("", "</w>")]
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=8)
