"""Pack the trained parts into the model folder that ships with the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from .data import Drawings
from .train_base import Denoiser
from .world import GROUND


def pack(work: Path, output: Path) -> None:
    """Save the averaged weights in half precision, without paths of the training machine."""
    trained: Any = Denoiser()
    trained.load_state_dict(torch.load(work / "base.pt", weights_only=True)["average"])
    trained.text_encoder.config.architectures = ["CLIPTextModel"]
    refined = work / "vae-refined"
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(refined if refined.exists() else work / "vae"),
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


def truths(
    drawings: Drawings, subjects: Sequence[str], styles: Sequence[str], output: Path
) -> None:
    """Write the true picture of each subject in each style that has it, on the ground of prompts.

    The held-out styles of the world are drawn by sets under the MIT and Apache-2.0 licences, so
    those pictures may ship.
    """
    output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(41)
    for style, subject in product(styles, subjects):
        if drawings.get(style, subject) is not None:
            picture = Image.fromarray(drawings.picture(style, subject, GROUND, rng))
            picture.save(output / f"{subject}-{style}.png", optimize=True)
