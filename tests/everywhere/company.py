"""What users run beside a LoRA: image prompts, FreeU, slicing and the like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ..runtime import pipes
from ..runtime.pipes import draw
from .clip import words


def vae() -> AutoencoderKL:
    torch.manual_seed(5)
    config: dict[str, Any] = {
        "block_out_channels": (4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 8,
    }
    return AutoencoderKL(**config).eval()


def whole(folder: Path) -> Any:
    """A pipeline with all its parts."""
    return pipes.sd(text_encoder=pipes.clip(), tokenizer=words(folder / "words"), vae=vae())


def image_prompt(pipe: Any) -> None:
    """An IP-Adapter of random weights, in the form of the published files."""
    g = torch.Generator().manual_seed(13)
    attention: dict[str, Tensor] = {}
    index = 1
    for name in pipe.unet.attn_processors:
        if "attn2" in name:
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for kind in ("k", "v"):
                weight = torch.randn(width, 12, generator=g)
                attention[f"{index}.to_{kind}_ip.weight"] = weight
            index += 2
    norm = nn.LayerNorm(12)
    projection = {
        "proj.weight": torch.randn(4 * 12, 6, generator=g),
        "proj.bias": torch.zeros(4 * 12),
        "norm.weight": norm.weight.data,
        "norm.bias": norm.bias.data,
    }
    state = {"image_proj": projection, "ip_adapter": attention}
    pipe.load_ip_adapter([state], subfolder="", weight_name="", image_encoder_folder=None)


def new_word(pipe: Any) -> None:
    pipe.load_textual_inversion({"<new>": 3 * draw(12, seed=17)}, token="<new>")


def tiles(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


@dataclass(frozen=True)
class Company:
    """Something beside the bundle.

    Attributes:
        act: Sets it going.
        inputs: What the pipeline is then called with.
        matters: Whether it changes the output by more than the order of sums does.
    """

    act: Callable[[Any], object]
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    matters: bool = True


_IMAGE: dict[str, Any] = {"ip_adapter_image_embeds": [draw(2, 1, 6, seed=19)]}
_PIXELS: dict[str, Any] = {"output_type": "pt", "batch": 2, "height": 12, "width": 16}

COMPANY: dict[str, Company] = {
    "IP-Adapter": Company(image_prompt, _IMAGE),
    "FreeU": Company(lambda pipe: pipe.enable_freeu(s1=0.5, s2=0.4, b1=1.5, b2=1.6)),
    "attention slicing": Company(lambda p: p.enable_attention_slicing(1), matters=False),
    "VAE tiling and slicing": Company(tiles, _PIXELS),
}
