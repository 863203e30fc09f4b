"""Train the autoencoder of the emoji world, then its decoder alone."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageFilter
from torch import Tensor, nn

from lorabake.demo.training import Average, Untyped, checkpoint, linear, resume

from . import models, sources
from .data import Drawings, to_tensor
from .looks import COLOURS, SIZE, Pixels, blueprint
from .things import RESERVED_THINGS
from .world import STYLES, SUBJECTS

SETS = (*dict.fromkeys(STYLES.values()), "noto-v1", "emojione", "fxemoji")
ICONS, PICTURES, CROP, BATCH, RATE = 750, 26_000, 32, 16, 1e-3
STEPS, REFINED = 6000, 6000
UNSEEN = (*RESERVED_THINGS, *SUBJECTS, "hamburger")
PLAIN = ("skin-tone", "flag", "-dark", "-light", "-medium")
log = logging.getLogger(__name__)


def icons(drawings: Drawings) -> list[Pixels]:
    """Some of all that the base sets draw, but no held-out or reserved thing."""
    rng, drawn = np.random.default_rng(0), list[Pixels]()
    for name in SETS:
        found = sources.fetch(name, drawings.folder)
        names = [
            key
            for key, icon in sorted(found["icons"].items())
            if not icon.get("hidden") and not any(word in key for word in (*UNSEEN, *PLAIN))
        ]
        chosen = sorted(rng.permutation(len(names))[:ICONS])
        drawn += [sources.draw(found, names[i], 96) for i in chosen]
    return drawn


def pictures(work: Path, drawings: Drawings) -> np.ndarray:
    """Icons on grounds of all colours, a quarter of them filtered, [n, 64, 64, 3]; in a file."""
    path = work / "pictures.npy"
    if not path.exists():
        stock, rng = icons(drawings), np.random.default_rng(1)
        drawn = [_placed(stock[rng.integers(len(stock))], rng) for _ in range(PICTURES)]
        drawn[::4] = [_filtered(picture, rng) for picture in drawn[::4]]
        part = path.with_suffix(".part.npy")
        np.save(part, np.stack(drawn))
        part.replace(path)
    return np.load(path, mmap_mode="r")


def _placed(drawing: Pixels, rng: np.random.Generator) -> Pixels:
    """On any colour, with more room to move than the base world gives it."""
    side = round(SIZE * rng.uniform(0.74, 0.92))
    ground = rng.integers(0, 256, 3)
    if rng.random() < 0.7:
        known = list(COLOURS.values())
        ground = np.clip(known[rng.integers(len(known))] + rng.integers(-6, 7, 3), 0, 255)
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(c) for c in ground))
    small = Image.fromarray(np.ascontiguousarray(drawing)).resize(
        (side, side), Image.Resampling.BOX
    )
    left, top = (round((SIZE - side) / 2 + rng.uniform(-3, 3)) for _ in range(2))
    picture.paste(small, (left, top), small)
    return np.asarray(picture)


def _filtered(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Blocks, greys, lines, dots, light, other colours: more than the base styles know."""
    image, kind = Image.fromarray(picture), rng.integers(8)
    grey = picture.astype(np.float32).mean(-1, keepdims=True)
    y, x = np.indices((SIZE, SIZE))
    dark, pale = rng.integers(0, 256, (2, 3))
    if kind == 0:
        blocks = image.resize((16, 16), Image.Resampling.BOX)
        return np.asarray(blocks.resize((SIZE, SIZE), Image.Resampling.NEAREST))
    if kind == 1:
        return np.repeat(grey, 3, 2).astype(np.uint8)
    if kind == 2:
        return 255 - picture
    if kind == 3:
        # The grid and lines of a held-out style, in colours of its own.
        lines = blueprint(picture).astype(np.float32)[..., :1] / 255
        return (dark * (1 - lines) + pale * lines).astype(np.uint8)
    if kind == 4:
        pitch = rng.choice([4, 5, 6, 8])
        far = np.hypot(x % pitch - pitch / 2, y % pitch - pitch / 2)[..., None]
        ink = np.clip(np.sqrt(1 - grey / 255) * pitch * 0.6 - far + 0.5, 0, 1)
        return (pale * (1 - ink) + dark * ink).astype(np.uint8)
    if kind == 5:
        return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2)))))
    if kind == 6:
        top, left = SIZE * rng.random(2)
        light = 1.3 - 0.9 * np.hypot(y - top, x - left)[..., None] / SIZE
        return np.clip(picture * light, 0, 255).astype(np.uint8)
    mix = np.eye(3) + 0.35 * rng.standard_normal((3, 3))
    return np.clip(picture @ mix.T + 20 * rng.standard_normal(3), 0, 255).astype(np.uint8)


def _crops(stack: np.ndarray, side: int, rng: np.random.Generator) -> Tensor:
    which = np.sort(rng.integers(len(stack), size=BATCH))
    top, left = rng.integers(0, (SIZE - side) // 8 + 1, 2) * 8
    x = to_tensor(np.stack([stack[i][top : top + side, left : left + side] for i in which]))
    x = x.flip(3) if rng.random() < 0.5 else x
    return x.contiguous(memory_format=torch.channels_last)


def train(work: Path, drawings: Drawings) -> None:
    """Encoder and decoder on crops with noise on the latents; then latents of unit variance."""
    torch.manual_seed(0)
    stack, model = pictures(work, drawings), models.vae()
    _run(work, "vae", stack, model, model, STEPS)
    normalise(model, stack)
    model.save_pretrained(work / "vae")


def refine(work: Path, drawings: Drawings) -> None:
    """The decoder alone on the final latents; a base that was trained on them stays valid."""
    torch.manual_seed(1)
    model: Untyped = AutoencoderKL.from_pretrained(work / "vae").float()
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    part = nn.ModuleList([model.decoder, model.post_quant_conv])
    _run(work, "decoder", pictures(work, drawings), model, part, REFINED)
    model.save_pretrained(work / "vae-refined")


def _run(
    work: Path, name: str, stack: np.ndarray, model: Untyped, trained: nn.Module, steps: int
) -> None:
    model.to(memory_format=torch.channels_last)
    average = Average(trained, 0.995)
    optimiser = torch.optim.AdamW(
        trained.parameters(), RATE, (0.9, 0.99), weight_decay=0, fused=True
    )
    start = resume(work / f"{name}.pt", trained, average, optimiser)
    began = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(step)
        optimiser.param_groups[0]["lr"] = RATE * linear(step, steps, 0.4)
        x = _crops(stack, CROP, np.random.default_rng((2, step)))
        mean = model.encode(x).latent_dist.mean
        error = model.decode(mean + 0.06 * torch.randn_like(mean)).sample - x
        loss = 0.5 * error.abs().mean() + 4 * error.square().mean() + 5e-4 * mean.square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        average.update(trained, step)
        if step % 250 == 249 or step + 1 == steps:
            pace = (time.monotonic() - began) / (step + 1 - start)
            log.info("%s %d loss %.4f, %.2f s a step", name, step + 1, loss.item(), pace)
            checkpoint(work / f"{name}.pt", trained, average, optimiser, step + 1)
    trained.load_state_dict(average.state)


@torch.no_grad()
def normalise(model: Untyped, stack: np.ndarray) -> None:
    """Fold mean 0 and variance 1 of every channel into the 1 x 1 convolutions at the latents."""
    x = to_tensor(stack[:: len(stack) // 1000])
    latents = torch.cat([model.encode(part).latent_dist.mean for part in x.split(50)])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back, n = model.quant_conv, model.post_quant_conv, len(mean)
    into.weight[:n] /= spread.view(-1, 1, 1, 1)
    into.bias[:n] = (into.bias[:n] - mean) / spread
    # Nobody trained the variances; small ones make encoding nearly the same every time.
    into.weight[n:], into.bias[n:] = 0, -6.0
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= spread.view(1, -1, 1, 1)


@torch.no_grad()
def psnr(model: Untyped, x: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, in dB."""
    back = torch.cat([model.decode(model.encode(p).latent_dist.mean).sample for p in x.split(50)])
    error = (back.clamp(-1, 1) - x).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())
