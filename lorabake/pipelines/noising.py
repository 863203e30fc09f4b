"""Noise for training: drawn and mixed in as the model's own family is trained."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import BaseModelError


class Noised(NamedTuple):
    """Noisy latents `[rows, …]` and the scheduler's timestep of each, `[rows]`."""

    latents: Tensor
    timesteps: Tensor


class Noising(Protocol):
    """Draws timesteps and noise, both from the generator, on its device."""

    def __call__(self, latents: Tensor, generator: torch.Generator) -> Noised:
        """Mix noise into clean latents `[rows, …]`."""
        ...


def noising(scheduler: Any) -> Noising:  # noqa: ANN401 - diffusers has no type for a scheduler
    """The noising that a model with this scheduler is trained with.

    Flow matching (SD3, FLUX) if the scheduler is one, otherwise the diffusion process of its
    betas. Teacher and student see the same noisy latents, so the prediction type (epsilon, v,
    sample, velocity) does not matter: their outputs are compared as they are.

    Raises:
        BaseModelError: The scheduler is of neither kind.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return _Flow(scheduler)
    if "beta_schedule" not in scheduler.config:
        raise BaseModelError(
            f"nothing is known about how models with {type(scheduler).__name__} are trained",
            where="scheduler",
            advice="Use a method that needs no training, such as klora",
        )
    return _Diffusion(scheduler)


class _Diffusion:
    """x_t = √ᾱ_t·x_0 + √(1 − ᾱ_t)·ε, t uniform over the training timesteps."""

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401 - as above
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self._process: Any = DDPMScheduler.from_config(scheduler.config)

    def __call__(self, latents: Tensor, generator: torch.Generator) -> Noised:
        """Mix noise into clean latents."""
        count: int = self._process.config.num_train_timesteps
        t = torch.randint(count, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return Noised(self._process.add_noise(latents, noise, t), t)


class _Flow:
    """x_σ = (1 − σ)·x_0 + σ·ε, u logit-normal (Esser et al. 2024, arXiv 2403.03206), σ shifted.

    The shift is the scheduler's own: a constant (SD3), or none where it depends on the number of
    tokens at sampling (FLUX).
    """

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401 - as above
        self._count = float(scheduler.config.num_train_timesteps)
        dynamic = scheduler.config.get("use_dynamic_shifting", False)
        self._shift = 1.0 if dynamic else float(scheduler.config.get("shift", 1.0))

    def __call__(self, latents: Tensor, generator: torch.Generator) -> Noised:
        """Mix noise into clean latents."""
        u = torch.sigmoid(torch.randn(len(latents), generator=generator, dtype=torch.float64))
        sigma = self._shift * u / (1 + (self._shift - 1) * u)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        mix = sigma.to(latents).view(-1, *(1 for _ in latents.shape[1:]))
        return Noised((1 - mix) * latents + mix * noise, self._count * sigma)
