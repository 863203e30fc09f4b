"""Train the VAE of the toy model."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional

from . import models
from .data import patterns, pictures, to_tensor
from .training import Average, Untyped, checkpoint, cosine, resume

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STEPS, CROPPED, RATE = 2000, 1750, 1.2e-3
CROP, BATCH, WHOLE_BATCH = 24, 16, 5
REFINED, REFINE_STEPS = 4000, 2400
log = logging.getLogger(__name__)


def _batch(stack: np.ndarray, rng: np.random.Generator, step: int) -> Tensor:
    """Crops of pictures and, at the end, whole ones; a fifth of them are patterns."""
    crop, batch = (CROP, BATCH) if step < CROPPED else (64, WHOLE_BATCH)
    plain = batch // 5
    chosen = stack[rng.integers(len(stack), size=batch - plain)]
    y, x = rng.integers(0, 64 - crop + 1, 2)
    cut = chosen[:, y : y + crop, x : x + crop]
    return to_tensor(np.concatenate([cut, patterns(plain, crop, rng)]))


def train(work: Path, count: int) -> None:
    """Crops first because they are cheap, then whole pictures; keeps an average."""
    torch.manual_seed(1)
    model: Untyped = models.vae()
    model.to(memory_format=torch.channels_last)
    average = Average(model, 0.998)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0)
    start = resume(work / "vae.pt", model, average, optimiser)
    stack = pictures(count, work)
    began = time.monotonic()
    for step in range(start, STEPS):
        rng = np.random.default_rng((2, step))
        torch.manual_seed(step)
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, STEPS)
        x = _batch(stack, rng, step)
        posterior = model.encode(x).latent_dist
        error = model.decode(posterior.sample()).sample - x
        loss = error.abs().mean() + 2 * error.square().mean() + 2e-4 * posterior.kl().mean() / 64
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update(model, step)
        if step % 50 == 49:
            pace = (time.monotonic() - began) / (step + 1 - start)
            log.info("vae %d loss %.4f, %.3f s a step", step + 1, loss.item(), pace)
            checkpoint(work / "vae.pt", model, average, optimiser, step + 1)
    model.load_state_dict(average.state)
    model.save_pretrained(work / "vae")


def refine(work: Path, count: int) -> None:
    """Train the decoder alone, which leaves the latents as they are: base training can go on."""
    torch.manual_seed(2)
    model: Untyped = AutoencoderKL.from_pretrained(work / "vae")
    model.requires_grad_(False)
    rng = np.random.default_rng(6)
    stack = np.concatenate([pictures(count, work)[:REFINED], patterns(REFINED // 5, 64, rng)])
    with torch.no_grad():
        x = to_tensor(stack)
        z = torch.cat([model.encode(part).latent_dist.mean for part in x.split(64)])
    trained = nn.ModuleList([model.decoder, model.post_quant_conv]).requires_grad_(True)
    average = Average(trained, 0.998)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=RATE, weight_decay=0)
    start = resume(work / "decoder.pt", trained, average, optimiser)
    for step in range(start, REFINE_STEPS):
        rng = np.random.default_rng((7, step))
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, REFINE_STEPS)
        side, batch = (8, 10) if step < 0.85 * REFINE_STEPS else (16, 4)
        which = torch.from_numpy(rng.integers(len(x), size=batch))
        top, left = rng.integers(0, 17 - side, 2)
        latent = z[which, :, top : top + side, left : left + side]
        truth = x[which, :, 4 * top : 4 * (top + side), 4 * left : 4 * (left + side)]
        latent = latent + 0.03 * torch.randn_like(latent)
        error = model.decode(latent.to(memory_format=torch.channels_last)).sample - truth
        loss = error.abs().mean() + 2 * error.square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        average.update(trained, step)
        if step % 200 == 199:
            log.info("decoder %d loss %.4f", step + 1, loss.item())
            checkpoint(work / "decoder.pt", trained, average, optimiser, step + 1)
    trained.load_state_dict(average.state)
    model.save_pretrained(work / "vae-refined")


def psnr(model: Untyped, x: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, in dB."""
    with torch.no_grad():
        back = model.decode(model.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    error = functional.mse_loss(back, x, reduction="none").mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())
