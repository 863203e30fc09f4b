"""Latent-level refinement: what guides the latents (arXiv 2602.15539, eq. 19, reconstructed)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Through = Literal["denoiser", "latents"]

MAX_EMBEDDING = 65_536
MAX_EVERY = 10_000
MAX_FORCE = 1_000_000
"""Of m and of a weight: far beyond what leaves a picture, far below what makes infinity."""


@dataclass(frozen=True)
class Reference:
    """One LoRA's reference image, as two encoders see it.

    Attributes:
        clip: Its CLIP embedding, of length 1.
        dino: Its DINO embedding, of length 1.
        prompt: What it was painted of; None for an image that was given.
        seed: What it was painted with; None likewise.
    """

    clip: tuple[float, ...]
    dino: tuple[float, ...]
    prompt: str | None
    seed: int | None


@dataclass(frozen=True)
class Guidance:
    """x_(t−1) ← x_(t−1) − m·∇R(x̂_0), R = 1 − (w_1·CLIP_c + w_2·CLIP_s + w_3·DINO_s) / 3.

    Attributes:
        references: Of content and style.
        clip: Id of the CLIP encoder, as the bundle's maker named it.
        dino: Id of the DINO encoder.
        m: Step size.
        every: At every how many steps: those whose position is a multiple of it.
        through: Whether the gradient goes through the `denoiser`, or takes its output as constant
            and goes through the `latents` alone.
        weights: Of the three similarities: (w_1, w_2, w_3).
    """

    references: tuple[Reference, Reference]
    clip: str
    dino: str
    m: float = 10.0
    every: int = 1
    through: Through = "denoiser"
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
