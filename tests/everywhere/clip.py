"""Words for a tiny text encoder of CLIP's kind."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer


def words(folder: Path) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    tokens = ["<|startoftext|>", "<|endoftext|>"]
    tokens += [letter + end for letter in "abcdefghijklmnopqr" for end in ("", "</w>")]
    folder.mkdir()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=8)
