"""Noise as each family is trained, from the formulas."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from lorabake.pipelines.noising import noising

lib: Any = diffusers
CLEAN = torch.randn(4000, 2, 1, 1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_diffusion(kind: str) -> None:
    scheduler = getattr(lib, kind)(beta_schedule="scaled_linear", beta_end=0.012)
    noised = noising(scheduler)(CLEAN, torch.Generator().manual_seed(1))
    betas = torch.linspace(0.0001**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = torch.cumprod(1 - betas, 0)[noised.timesteps].view(-1, 1, 1, 1)
    noise = (noised.latents - kept.sqrt() * CLEAN) / (1 - kept).sqrt()
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    spread = torch.histc(noised.timesteps.float(), 4, 0, 1000) / len(CLEAN)
    assert spread.tolist() == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize(
    ("shift", "dynamic", "middle"), [(1.0, False, 500), (3.0, False, 750), (3.0, True, 500)]
)
def test_flow_matching(shift: float, dynamic: bool, middle: float) -> None:
    scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    noised = noising(scheduler)(CLEAN, torch.Generator().manual_seed(1))
    sigma = (noised.timesteps / 1000).view(-1, 1, 1, 1)
    noise = (noised.latents - (1 - sigma) * CLEAN) / sigma
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert float(noised.timesteps.median()) == pytest.approx(middle, abs=20)


def test_a_seed_is_the_same_noise() -> None:
    draw = noising(lib.DDIMScheduler())
    one, same, other = (draw(CLEAN, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one.latents, same.latents)
    assert not torch.equal(one.latents, other.latents)
