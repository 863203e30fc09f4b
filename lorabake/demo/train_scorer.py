"""Train the scorer on true renders, on worn ones, and on negatives that must not count."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file
from torch.nn import functional

from .data import to_tensor
from .figures import SUBJECTS
from .looks import NEW_STYLES, STYLES
from .scorer import FIGURES, LOOKS, Scorer
from .training import Untyped, cosine
from .world import CLASSES, render, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

STEPS, BATCH, RATE = 1500, 64, 2e-3
TRAINED, TESTED = 6000, 600
log = logging.getLogger(__name__)


def renders(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """True renders of every figure in every style, with their two labels."""
    names, styles = (*CLASSES, *SUBJECTS), (*STYLES, *NEW_STYLES)
    pictures, figures, looks = [], list[int](), list[int]()
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        scene = sample_scene(rng, names, styles)
        if i % 4 == 0:
            scene = sample_scene(rng, SUBJECTS, styles)
        pictures.append(render(scene, rng))
        figures.append(FIGURES.index(scene.figure))
        looks.append(LOOKS.index(scene.style))
    return to_tensor(np.stack(pictures)), torch.tensor(figures), torch.tensor(looks)


def _blur(x: Tensor, sigma: float) -> Tensor:
    reach = max(1, int(2.5 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).view(1, 1, -1, 1).repeat(3, 1, 1, 1)
    x = functional.conv2d(functional.pad(x, (0, 0, reach, reach), "replicate"), taps, groups=3)
    taps = taps.transpose(2, 3)
    return functional.conv2d(functional.pad(x, (reach, reach, 0, 0), "replicate"), taps, groups=3)


def worn(vae: Untyped, x: Tensor, strength: float) -> Tensor:
    """Pictures as a diffusion model would leave them: noisy latents, decoded."""
    mean = vae.encode(x).latent_dist.mean
    return vae.decode(mean + strength * mean.std() * torch.randn_like(mean)).sample


def _spoil(x: Tensor, figures: Tensor, looks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Wear every picture a little; turn about a third into negatives labelled unclear."""
    figures, looks, x = figures.clone(), looks.clone(), x.clone()
    eighth = len(x) // 8
    blend, chimera, smear = (slice(i * eighth, (i + 1) * eighth) for i in range(3))
    other = x.roll(eighth, 0)
    new = figures != figures.roll(eighth, 0), looks != looks.roll(eighth, 0)
    share = torch.empty(eighth, 1, 1, 1).uniform_(0.35, 0.65)
    x[blend] = share * x[blend] + (1 - share) * other[blend]
    upright = bool(torch.rand(()) < 0.5)
    half = (Ellipsis, slice(32, None), slice(None)) if upright else (Ellipsis, slice(32, None))
    cut = x[chimera].clone()
    cut[half] = other[chimera][half]
    x[chimera] = cut
    x[smear] = _blur(x[smear], float(torch.empty(()).uniform_(3, 6)))
    for part in (blend, chimera):
        figures[part] = torch.where(new[0][part], len(FIGURES) - 1, figures[part])
        looks[part] = torch.where(new[1][part], len(LOOKS) - 1, looks[part])
    figures[smear], looks[smear] = len(FIGURES) - 1, len(LOOKS) - 1
    mild = slice(len(x) // 2, len(x) * 3 // 4)
    x[mild] = _blur(x[mild], float(torch.empty(()).uniform_(0.3, 1.0)))
    return x + 0.06 * torch.rand(()) * torch.randn_like(x), figures, looks


@torch.no_grad()
def accuracy(model: Scorer, x: Tensor, figures: Tensor, looks: Tensor) -> tuple[float, float]:
    """Share of pictures whose figure, and whose style, is told right."""
    told = [logits.argmax(1) for logits in model(x)]
    right = [(t == truth).float().mean() for t, truth in zip(told, (figures, looks), strict=True)]
    return float(right[0]), float(right[1])


def train(work: Path, output: Path) -> None:
    """Train on renders, half of them worn by the VAE; log the accuracy on unseen renders."""
    torch.manual_seed(7)
    vae = AutoencoderKL.from_pretrained(work / "vae-refined").eval()
    x, figures, looks = renders(TRAINED, 11)
    with torch.no_grad():
        tired = torch.cat([worn(vae, part, 0.15) for part in x[: TRAINED // 2].split(50)])
    x = torch.cat([x, tired])
    figures, looks = (torch.cat([label, label[: TRAINED // 2]]) for label in (figures, looks))
    model = Scorer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, STEPS)
        which = torch.randint(len(x), (BATCH,))
        batch, figure, look = _spoil(x[which], figures[which], looks[which])
        told = model(batch)
        loss = functional.cross_entropy(told[0], figure, label_smoothing=0.02)
        loss = loss + functional.cross_entropy(told[1], look, label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 250 == 249:
            log.info("scorer %d loss %.4f", step + 1, loss.item())
    held_out, figures, looks = renders(TESTED, 12)
    right = accuracy(model, held_out, figures, looks)
    log.info("held-out renders: figure %.3f, style %.3f", *right)
    with torch.no_grad():
        held_out = worn(vae, held_out, 0.15)
    right = accuracy(model, held_out, figures, looks)
    log.info("the same, worn: figure %.3f, style %.3f", *right)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, output)
