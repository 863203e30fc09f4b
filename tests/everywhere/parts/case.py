"""What all tiny pipelines have in common: a run that can be repeated exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

# Of a pipeline with one text encoder; embeddings and latents are given instead.
NO_TEXT: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}
MASKS: dict[str, Any] = {
    "prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
    "negative_prompt_attention_mask": torch.ones(1, 5, dtype=torch.bool),
}


@dataclass
class Case:
    """A pipeline and what it is called with.

    Attributes:
        pipe: Real pipeline, tiny random parts.
        inputs: Makes the arguments of one run, from embeddings and latents to output latents.
        denoisers: Components that the bundle has layers of.
        starts: Position of the first of ten steps, by strength, where the pipeline takes one.
    """

    pipe: Any
    inputs: Callable[[], dict[str, Any]]
    denoisers: tuple[str, ...] = ("transformer",)
    starts: dict[float, int] = field(default_factory=dict[float, int])

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        for name in self.denoisers:
            getattr(self.pipe, name).eval().requires_grad_(requires_grad=False)

    def run(self, steps: int = 4, **more: Any) -> Tensor:
        """Latents of one run."""
        given = self.inputs() | {"num_inference_steps": steps, "output_type": "latent"} | more
        # Where a pipeline keeps its generator from the scheduler, that one draws from here.
        torch.manual_seed(0)
        output = self.pipe(**given, generator=torch.Generator().manual_seed(0))
        return next(iter(output.values()))


def draw(seed: int) -> Callable[..., Tensor]:
    """A source of random tensors, each different, all from one seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def tiny_vae(seed: int, channels: int = 4, **changes: Any) -> AutoencoderKL:
    """Halves an image once; the pipelines call that a scale factor of 2."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return AutoencoderKL(**(config | changes)).eval()
