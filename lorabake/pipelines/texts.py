"""The text tower of a CLIP model, for scores of pictures against their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BaseModelError
from .blame import blame
from .encoders import locate


class Texts:
    """Embeds texts as CLIP does: the projected embedding of the end token."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:  # noqa: ANN401 - of transformers
        self._model, self._tokenizer, self._device = model, tokenizer, device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; what is too long is cut, as everywhere with CLIP.

        Returns:
            `[n, d]` in the model's dtype, not of unit length.
        """
        longest = self._model.config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            return self._model(
                input_ids=tokens["input_ids"].to(self._device),
                attention_mask=tokens["attention_mask"].to(self._device),
            ).text_embeds


def load(name: str | Path, *, device: torch.device) -> Texts:
    """Load the text tower and the tokenizer of a CLIP model.

    Args:
        name: Folder of transformers, or id on the Hugging Face hub.
        device: Where it goes.

    Raises:
        BaseModelError: It has no text tower or no tokenizer, or cannot be loaded.
    """
    where = locate(name)
    with blame("cannot be loaded as a text encoder", where=str(name), advice="Name a CLIP model"):
        from transformers import AutoConfig, AutoTokenizer, CLIPTextModelWithProjection

        config: Any = AutoConfig.from_pretrained(where, trust_remote_code=False)
        if config.model_type != "clip":
            raise BaseModelError(
                "has no text tower", where=str(name), advice="Name a whole CLIP model"
            )
        text = config.text_config
        text.projection_dim = config.projection_dim
        loader: Any = CLIPTextModelWithProjection
        model, info = loader.from_pretrained(
            where, config=text, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if info["missing_keys"]:
            raise BaseModelError(
                "lacks weights of its text tower", where=str(name), advice="Save it again"
            )
        tokens: Any = AutoTokenizer
        return Texts(
            model.to(device).eval(), tokens.from_pretrained(where, trust_remote_code=False), device
        )
