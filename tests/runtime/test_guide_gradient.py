"""Refinement moves the latents by m times the gradient that finite differences find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from lorabake.runtime import read

from .guided import conditions, encoders, guidance, guide, latents, naive_score, pipeline, run
from .naive_bundle import LIVE, all_live, one_of_each, write
from .pipes import draw

Predict = Callable[[Tensor], Tensor]
CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "DDIM": ("sd15", lambda: DDIMScheduler(clip_sample=False, steps_offset=1)),
    "Euler": ("sd15", lambda: EulerDiscreteScheduler(steps_offset=1)),
    "DPM++": ("sd15", lambda: DPMSolverMultistepScheduler()),
    "SD3": ("sd3", lambda: None),
    "FLUX": ("flux", lambda: None),
}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def level(pipe: Any, step: int = 0) -> float:
    """σ of a step: of x_0 + σ·ε, or for flows of (1 − σ)·x_0 + σ·ε."""
    t = pipe.scheduler.timesteps[step]
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        kept = pipe.scheduler.alphas_cumprod[int(t)].double()
        return float(((1 - kept) / kept).sqrt())
    return float(t) / 1000


def denoise(pipe: Any, x: Tensor) -> Tensor:
    """The prediction of the first step with guidance scale 4, two samples after each other."""
    t = pipe.scheduler.timesteps[0]
    given = conditions(pipe, len(x))
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    places = torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).double()
    found: list[Tensor] = []
    for i, one in enumerate(x):
        own = {name: value[i : i + 1] for name, value in given.items()}
        two: list[Tensor] = []
        for prefix in ("negative_", ""):
            words = own[f"{prefix}prompt_embeds"]
            if hasattr(pipe, "_unpack_latents"):
                out = pipe.transformer(
                    one[None], words, own[f"{prefix}pooled_prompt_embeds"],
                    t[None].double() / 1000, img_ids=places,
                    guidance=torch.tensor([4.0]).double(), txt_ids=torch.zeros(5, 3).double(),
                )  # fmt: skip
            elif hasattr(pipe, "unet"):
                scale = 1.0
                if isinstance(pipe.scheduler, EulerDiscreteScheduler):
                    scale = (1 + level(pipe) ** 2) ** -0.5
                out = pipe.unet(one[None] * scale, t, encoder_hidden_states=words)
            else:
                pooled = own[f"{prefix}pooled_prompt_embeds"]
                out = pipe.transformer(one[None], words, pooled, t[None])
            two.append(out.sample[0])
        found.append(two[0] + 4.0 * (two[1] - two[0]))
    return torch.stack(found)


def naive(pipe: Any, x: Tensor, output: Tensor, models: Any) -> Tensor:
    """R of x̂_0, decoded."""
    sigma, config = level(pipe), pipe.vae.config
    if not hasattr(pipe, "unet") or isinstance(pipe.scheduler, EulerDiscreteScheduler):
        clean = x - sigma * output
    else:
        clean = x * (1 + sigma**2) ** 0.5 - sigma * output
    if clean.ndim == 3:  # tokens are patches of 2 × 2
        clean = torch.pixel_shuffle(clean.transpose(1, 2).reshape(len(x), 16, 4, 4), 2)
    z = clean / config.scaling_factor + (config.shift_factor or 0.0)
    return naive_score((pipe.vae.decode(z).sample + 1) / 2, models, guidance())


@pytest.mark.parametrize("through", ["latents", "denoiser"])
@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str, through: Any) -> None:
    family, scheduler = CASES[name]
    check(pipeline(family, torch.float64, scheduler()), through)


@pytest.mark.parametrize("mode", ["fused", "hooks", "live"])
def test_gradient_beside_a_bundle(mode: Any, tmp_path: Path) -> None:
    """Through layers whose weights change between steps, or that have branches beside them."""
    pipe = pipeline("sd15", torch.float64)
    live = mode == "live"
    specs = (all_live if live else one_of_each)("unet", pipe.unet)
    path = write(tmp_path / "a.safetensors", specs, {"unet": pipe.unet}, **(LIVE if live else {}))
    base = run(pipe)[-1]
    with read(path).attach(pipe, mode="auto" if live else mode):
        assert not torch.equal(run(pipe)[-1], base)
        check(pipe, "denoiser")
    assert torch.equal(run(pipe)[-1], base)


def check(pipe: Any, through: Any) -> None:
    """One step of two samples against finite differences of R, along two directions."""
    plain = run(pipe, count=2)[0]
    guiding = guide(pipe, guidance(m=3.0, through=through))
    try:
        found = (plain - run(pipe, count=2)[0]) / 3.0
    finally:
        guiding.remove()
    models = {key: one.double() for key, one in encoders().items()}
    x, h = latents(pipe, 2) * getattr(pipe.scheduler, "init_noise_sigma", 1.0), 1e-4

    @torch.no_grad()
    def scores(shift: Tensor) -> Tensor:
        output = denoise(pipe, x + shift if through == "denoiser" else x)
        return naive(pipe, x + shift, output, models)

    # Euler's latents are larger than those of variance 1, before the step and after.
    large = isinstance(pipe.scheduler, EulerDiscreteScheduler)
    before, after = ((1 + s**2) ** 0.5 if large else 1.0 for s in (level(pipe), level(pipe, 1)))
    found = found / after
    first = guiding.report()[0]
    assert first["progress"] == 0
    torch.testing.assert_close(
        torch.tensor(first["score"]).double(), scores(torch.zeros_like(x)), rtol=1e-5, atol=1e-6
    )
    for seed in range(2):
        along = draw(*x.shape, seed=seed + 90).double()
        slope = (scores(h * along) - scores(-h * along)) / (2 * h)
        assert float(slope.abs().min()) > 1e-6
        there = (found / before * along).flatten(1).sum(1)
        torch.testing.assert_close(there, slope, rtol=2e-4, atol=1e-4 * float(slope.abs().max()))
    norms = torch.tensor(first["gradient"]).double()
    torch.testing.assert_close(norms, found.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
