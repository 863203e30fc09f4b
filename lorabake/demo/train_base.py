"""Train the UNet and the text encoder of the toy model, together."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional

from . import models
from .data import pictures, scene_of, to_tensor
from .training import Average, Untyped, checkpoint, linear, resume
from .world import sample_caption

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

BATCH, RATE, VARIANTS = 16, 1e-3, 8
log = logging.getLogger(__name__)


class Denoiser(nn.Module):
    """The two models that are trained together; a call returns the v-prediction loss."""

    def __init__(self) -> None:
        """Build both with random weights."""
        super().__init__()
        self.tokens = models.tokenizer()
        self.text_encoder = models.text_encoder(self.tokens)
        self.unet: Untyped = models.unet()
        self.unet.to(memory_format=torch.channels_last)
        # The plain processor's backward is faster on CPU than scaled_dot_product_attention's.
        self.unet.set_attn_processor(AttnProcessor())
        self.noise = models.scheduler()

    def forward(self, clean: Tensor, ids: Tensor, times: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity."""
        return v_loss(self.unet, self.noise, clean, self.text_encoder(ids)[0], times)


def v_loss(unet: nn.Module, noise: Untyped, clean: Tensor, text: Tensor, times: Tensor) -> Tensor:
    """Loss of one batch; the noise comes from the global generator."""
    eps = torch.randn_like(clean)
    noisy = noise.add_noise(clean, eps, times)
    velocity = noise.get_velocity(clean, eps, times)
    noisy = noisy.to(memory_format=torch.channels_last)
    return functional.mse_loss(unet(noisy, times, text).sample, velocity)


def sample_times(count: int) -> Tensor:
    """Timesteps, 60 % of them around 700, where the layout of a picture is decided."""
    middle = (700 + 150 * torch.randn(count)).round().clamp(0, 999).long()
    return torch.where(torch.rand(count) < 0.6, middle, torch.randint(0, 1000, (count,)))


@torch.no_grad()
def encode(vae: Untyped, stack: np.ndarray) -> Tensor:
    """Scaled mean latents of pictures."""
    parts = [to_tensor(stack[i : i + 64]) for i in range(0, len(stack), 64)]
    means = [vae.encode(x).latent_dist.mean for x in parts]
    return torch.cat(means) * vae.config["scaling_factor"]


def latents(work: Path, count: int) -> Tensor:
    """Latents of the base world, kept in a file; sets the VAE's scaling factor on the way."""
    path = work / f"latents-{count}.pt"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        vae.register_to_config(scaling_factor=1.0)
        raw = encode(vae, pictures(count, work))
        vae.register_to_config(scaling_factor=round(1 / float(raw.std()), 4))
        vae.save_pretrained(work / "vae")
        torch.save(raw * vae.config["scaling_factor"], path)
    return torch.load(path, weights_only=True)


def train(work: Path, count: int, steps: int) -> None:
    """Flat learning rate, then linear to zero; keeps an average and a log."""
    torch.manual_seed(3)
    model = Denoiser()
    clean = latents(work, count)
    texts = [
        sample_caption(scene_of(seed), np.random.default_rng((seed, 2, variant)))
        for seed in range(count)
        for variant in range(VARIANTS)
    ]
    ids = model.tokens(texts, padding="max_length", return_tensors="pt").input_ids
    ids = ids.view(count, VARIANTS, -1)
    average = Average(model, 0.999)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    start = resume(work / "base.pt", model, average, optimiser)
    began, losses = time.monotonic(), list[float]()
    for step in range(start, steps):
        torch.manual_seed(1000 + step)
        optimiser.param_groups[0]["lr"] = RATE * linear(step, steps, 0.5)
        which = torch.randint(count, (BATCH,))
        loss = model(clean[which], ids[which, step % VARIANTS], sample_times(BATCH))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model, step)
        losses.append(loss.item())
        if step % 50 == 49:
            pace = (time.monotonic() - began) / (step + 1 - start)
            log.info("base %d loss %.4f, %.3f s a step", step + 1, np.mean(losses[-200:]), pace)
        if step % 250 == 249 or step + 1 == steps:
            checkpoint(work / "base.pt", model, average, optimiser, step + 1)
