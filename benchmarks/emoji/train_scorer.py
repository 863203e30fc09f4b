"""Train the scorer on true renders, on worn ones, and on negatives that must not count."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lorabake.demo.training import Untyped, cosine

from .data import Drawings, to_tensor
from .looks import COLOURS
from .scorer import Scorer
from .world import THINGS

STEPS, BATCH, RATE = 1800, 64, 2e-3
COPIES, WEAR = 8, 0.2
log = logging.getLogger(__name__)


def renders(
    drawings: Drawings, names: tuple[tuple[str, ...], tuple[str, ...]], copies: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """True renders of every thing in every style, [n, 3, 64, 64], with their two labels."""
    rng = np.random.default_rng(seed)
    pictures, labels = [], list[tuple[int, int]]()
    for t, thing in enumerate(names[0]):
        for s, style in enumerate(names[1]):
            if drawings.get(style, thing) is not None:
                for _ in range(copies):
                    colour = str(rng.choice(list(COLOURS)))
                    pictures.append(drawings.picture(style, thing, colour, rng))
                    labels.append((t, s))
    things, styles = torch.tensor(labels).unbind(1)
    return to_tensor(np.stack(pictures)), things, styles


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


def _spoil(
    x: Tensor, things: Tensor, styles: Tensor, unclear: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Wear every picture a little; turn about a third into negatives labelled unclear."""
    things, styles, x = things.clone(), styles.clone(), x.clone()
    eighth = len(x) // 8
    blend, chimera, smear = (slice(i * eighth, (i + 1) * eighth) for i in range(3))
    other = x.roll(eighth, 0)
    new = things != things.roll(eighth, 0), styles != styles.roll(eighth, 0)
    share = torch.empty(eighth, 1, 1, 1).uniform_(0.35, 0.65)
    x[blend] = share * x[blend] + (1 - share) * other[blend]
    upright = bool(torch.rand(()) < 0.5)
    half = (Ellipsis, slice(32, None), slice(None)) if upright else (Ellipsis, slice(32, None))
    cut = x[chimera].clone()
    cut[half] = other[chimera][half]
    x[chimera] = cut
    x[smear] = _blur(x[smear], float(torch.empty(()).uniform_(3, 6)))
    for part in (blend, chimera):
        things[part] = torch.where(new[0][part], unclear[0], things[part])
        styles[part] = torch.where(new[1][part], unclear[1], styles[part])
    things[smear], styles[smear] = unclear
    mild = slice(len(x) // 2, len(x) * 3 // 4)
    x[mild] = _blur(x[mild], float(torch.empty(()).uniform_(0.3, 0.8)))
    mirrored = torch.rand(len(x)) < 0.5
    x[mirrored] = x[mirrored].flip(3)
    x = x.roll(torch.randint(-3, 4, (2,)).tolist(), (2, 3))
    return x + 0.06 * torch.rand(()) * torch.randn_like(x), things, styles


@torch.no_grad()
def accuracy(model: Scorer, x: Tensor, things: Tensor, styles: Tensor) -> tuple[float, float]:
    """Share of pictures whose thing, and whose style, is told right."""
    told = [torch.cat(t).argmax(1) for t in zip(*(model(p) for p in x.split(256)), strict=True)]
    right = [(t == truth).float().mean() for t, truth in zip(told, (things, styles), strict=True)]
    return float(right[0]), float(right[1])


def train(drawings: Drawings, vae: Untyped, more: tuple[str, ...], output: Path) -> None:
    """Train on renders, clean and worn by the VAE; log the accuracy on unseen renders.

    Args:
        drawings: With every style that is to be told.
        vae: Of the model whose pictures will be judged.
        more: Things beside those of the world.
        output: The file.
    """
    torch.manual_seed(7)
    names = (*THINGS, *more), tuple(drawings.styles)
    x, things, styles = renders(drawings, names, COPIES, 11)
    half = torch.randperm(len(x))[: len(x) // 2]
    with torch.no_grad():
        x[half] = torch.cat(
            [worn(vae, part, WEAR * float(torch.rand(()))) for part in x[half].split(50)]
        )
    model = Scorer(*names)
    unclear = len(names[0]), len(names[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, STEPS)
        which = torch.randint(len(x), (BATCH,))
        batch, thing, style = _spoil(x[which], things[which], styles[which], unclear)
        told = model(batch)
        loss = functional.cross_entropy(told[0], thing, label_smoothing=0.02)
        loss = loss + functional.cross_entropy(told[1], style, label_smoothing=0.02)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 250 == 249:
            log.info("scorer %d loss %.4f", step + 1, loss.item())
    held_out, things, styles = renders(drawings, names, 1, 12)
    log.info("unseen renders: thing %.3f, style %.3f", *accuracy(model, held_out, things, styles))
    with torch.no_grad():
        held_out = torch.cat([worn(vae, part, WEAR) for part in held_out.split(50)])
    log.info("the same, worn: thing %.3f, style %.3f", *accuracy(model, held_out, things, styles))
    model.save(output)
