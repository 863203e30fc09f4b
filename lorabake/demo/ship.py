"""Pack the trained parts into the model folder that ships with the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from .train_base import Denoiser

if TYPE_CHECKING:
    from pathlib import Path


def pack(work: Path, output: Path) -> None:
    """Save the averaged weights in half precision, without paths of the training machine."""
    trained: Any = Denoiser()
    trained.load_state_dict(torch.load(work / "base.pt", weights_only=True)["average"])
    trained.text_encoder.config.architectures = ["CLIPTextModel"]
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(work / "vae-refined"),
        "text_encoder": trained.text_encoder,
        "tokenizer": trained.tokens,
        "unet": trained.unet.to(memory_format=torch.contiguous_format),
        "scheduler": trained.noise,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    # Stock loaders bring back the text encoder in the stored precision and all else in float32:
    # it is tiny, so it is stored in float32 and a plain from_pretrained gives one precision.
    pipe.unet.half()
    pipe.vae.half()
    pipe.save_pretrained(output)
    for path in output.rglob("*.json"):
        content = json.loads(path.read_text())
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
