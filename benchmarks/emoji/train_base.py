"""Train the UNet and the text encoder of the emoji world, together."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from lorabake.demo.training import Average, Untyped, checkpoint, linear, resume

from . import models
from .data import Drawings, to_tensor
from .looks import COLOURS
from .world import BASE_THINGS, STYLES, Scene, sample_caption

BATCH, RATE, VARIANTS, CAPTIONS = 32, 1.2e-3, 20, 6
SAVED = 250
"""Steps from one checkpoint to the next."""
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
    """Timesteps, 60 % of them around 800, where the layout of a picture is decided."""
    middle = (800 + 130 * torch.randn(count)).round().clamp(0, 999).long()
    return torch.where(torch.rand(count) < 0.6, middle, torch.randint(0, 1000, (count,)))


@torch.no_grad()
def encode(vae: Untyped, stack: np.ndarray) -> Tensor:
    """Scaled mean latents of pictures."""
    parts = [to_tensor(stack[i : i + 64]) for i in range(0, len(stack), 64)]
    means = [vae.encode(x).latent_dist.mean for x in parts]
    return torch.cat(means) * vae.config["scaling_factor"]


def bank(work: Path, drawings: Drawings, vae: Untyped) -> tuple[Tensor, list[Scene]]:
    """Latents of every thing in every style, `VARIANTS` times each, kept in a file."""
    rng, scenes = np.random.default_rng(3), list[Scene]()
    known = [(t, s) for t in BASE_THINGS for s in STYLES if drawings.get(s, t) is not None]
    for thing, style in known:
        colours = rng.permutation(np.repeat(list(COLOURS), VARIANTS // len(COLOURS)))
        scenes += [Scene(thing, str(colour), style) for colour in colours]
    path = work / "latents.pt"
    if not path.exists():
        pictures = [drawings.picture(s.style, s.thing, s.colour, rng) for s in scenes]
        torch.save(encode(vae, np.stack(pictures)).half(), path)
    return torch.load(path, weights_only=True), scenes


def train(work: Path, drawings: Drawings, vae: Untyped, steps: int) -> None:
    """Flat learning rate, then linear to zero; keeps an average and a log."""
    torch.manual_seed(3)
    model = Denoiser()
    clean, scenes = bank(work, drawings, vae)
    texts = [
        sample_caption(scene, np.random.default_rng((i, variant)))
        for i, scene in enumerate(scenes)
        for variant in range(CAPTIONS)
    ]
    ids = model.tokens(texts, padding="max_length", return_tensors="pt").input_ids
    ids = ids.view(len(scenes), CAPTIONS, -1)
    average = Average(model, 0.999)
    optimiser = torch.optim.AdamW(
        model.parameters(), RATE, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    start = resume(work / "base.pt", model, average, optimiser)
    began, losses = time.monotonic(), list[float]()
    for step in range(start, steps):
        torch.manual_seed(1000 + step)
        optimiser.param_groups[0]["lr"] = RATE * linear(step, steps, 0.6)
        which = torch.randint(len(scenes), (BATCH,))
        said = ids[which, torch.randint(CAPTIONS, (BATCH,))]
        loss = model(clean[which].float(), said, sample_times(BATCH))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model, step)
        losses.append(loss.item())
        if step % 50 == 49:
            pace = (time.monotonic() - began) / (step + 1 - start)
            log.info("base %d loss %.4f, %.3f s a step", step + 1, np.mean(losses[-50:]), pace)
        if step % SAVED == SAVED - 1 or step + 1 == steps:
            checkpoint(work / "base.pt", model, average, optimiser, step + 1)
