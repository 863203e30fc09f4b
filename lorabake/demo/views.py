"""What the toy encoders are trained on: clean and worn pictures, and other views of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.nn import functional

from .data import pictures, to_tensor
from .train_scorer import worn
from .world import SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

PICTURES = 7000


def stock(work: Path, vae: Path) -> NDArray[np.uint8]:
    """Pictures of the base world, clean and worn, [2, n, 64, 64, 3]; kept in a file."""
    clean, path = pictures(PICTURES, work), work / f"worn-{PICTURES}.npy"
    if not path.exists():
        torch.manual_seed(21)
        coder = AutoencoderKL.from_pretrained(vae).eval()
        parts = [clean[i : i + 50] for i in range(0, PICTURES, 50)]
        with torch.no_grad():
            tired = [worn(coder, to_tensor(p), float(torch.rand(()) * 0.6)) for p in parts]
        stack = ((torch.cat(tired) + 1) * 127.5).round().clamp(0, 255).byte()
        part = path.with_suffix(".part.npy")
        np.save(part, stack.permute(0, 2, 3, 1).numpy())
        part.replace(path)
    return np.stack([clean, np.load(path)])


def view(x: Tensor, smallest: float, colour: float) -> Tensor:
    """Another look at each picture: cut, mirrored, recoloured, blurred or noisy.

    Args:
        x: Pictures in [-1, 1], [n, 3, 64, 64].
        smallest: Side of the smallest cut, as a share of the picture's; the largest is 1.05.
        colour: How far the channels are mixed and shifted.
    """
    n = len(x)
    side = torch.empty(n).uniform_(smallest, 1.05)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    room = (1 - side).clamp(min=0) + 0.06
    shift = (torch.rand(n, 2) * 2 - 1) * room[:, None]
    grow = torch.diag_embed(torch.stack([side * mirror, side], 1))
    places = functional.affine_grid(
        torch.cat([grow, shift[..., None]], 2), [n, 3, SIZE, SIZE], align_corners=False
    )
    x = functional.grid_sample(x, places, padding_mode="border", align_corners=False)
    mix = torch.eye(3) + colour * torch.randn(n, 3, 3)
    x = torch.einsum("nij,njhw->nihw", mix, x) + colour * torch.randn(n, 3, 1, 1)
    soft = slice(0, n // 4)
    small = functional.interpolate(x[soft], int(torch.randint(12, 40, ())), mode="area")
    x = torch.cat([functional.interpolate(small, SIZE, mode="bilinear"), x[n // 4 :]])
    return (x + 0.15 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)).clamp(-1, 1)
