"""Guided pipelines that share things, and parts that are not what they should be."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorabake.runtime import AttachError

from .guided import encoders, guidance, guide, pipeline, run

lib: Any = diffusers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def sharing(pipe: Any) -> Any:
    """A pipeline with another UNet and the same scheduler."""
    parts = dict(pipe.components)
    torch.manual_seed(9)
    parts["unet"] = lib.UNet2DConditionModel.from_config(pipe.unet.config).eval()
    other = lib.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    assert other.scheduler is pipe.scheduler
    return other


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_pipeline_of_a_shared_scheduler_is_guided(order: tuple[int, int]) -> None:
    first = pipeline("sd15")
    pipes = (first, sharing(first))
    plain = [run(pipe)[-1] for pipe in pipes]
    before = dict(vars(first.scheduler))
    guides = [guide(pipe, guidance(through="latents")) for pipe in pipes]
    for pipe, without in zip(pipes, plain, strict=True):
        assert not torch.equal(run(pipe)[-1], without)
    assert [len(one.report()) for one in guides] == [2, 2]
    guides[order[0]].remove()
    assert torch.equal(run(pipes[order[0]])[-1], plain[order[0]])
    assert not torch.equal(run(pipes[order[1]])[-1], plain[order[1]])
    guides[order[1]].remove()
    assert "step" not in vars(first.scheduler)
    assert vars(first.scheduler).keys() == before.keys()
    copy.deepcopy(first.scheduler)


@pytest.mark.parametrize("through", ["latents", "denoiser"])
def test_a_run_that_was_broken_off_guides_no_other(through: Any) -> None:
    first = pipeline("sd15")
    other = sharing(first)
    plain = run(other)[-1]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    guiding = guide(first, guidance(through=through))
    handle = first.unet.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run(first)
    handle.remove()
    assert torch.equal(run(other)[-1], plain)
    assert guiding.report() == []
    guiding.remove()


def test_inference_mode_with_a_vae_that_float16_overflows() -> None:
    pipe = pipeline("sdxl")
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    guiding = guide(pipe, guidance(through="latents"), encoders=encoders())
    with torch.inference_mode():
        run(pipe, output_type="latent")
    assert len(guiding.report()) == 2
    assert {weight.dtype for weight in pipe.vae.parameters()} == {torch.float16}
    guiding.remove()


class Odd(nn.Module):
    """An encoder that gives something else."""

    def __init__(self, gives: Any) -> None:
        super().__init__()
        self.gives = gives

    def forward(self, images: Tensor) -> Any:
        return self.gives(images)


ODD: dict[str, tuple[Any, str]] = {
    "a list": (lambda of: [*of.values()], r"clip .* and dino .* are missing"),
    "a tuple": (
        lambda of: of | {"clip": Odd(lambda x: (of["clip"](x),))}, "gives tuple where a tensor"
    ),
    "numpy": (
        lambda of: of | {"clip": Odd(lambda x: np.zeros((len(x), 6)))},
        "gives ndarray where a tensor",
    ),
    "the model itself": (
        lambda of: of | {"clip": of["clip"].model}, r"cannot embed an image .*\(ValueError: Input"
    ),
    "NaN": (
        lambda of: of | {"clip": Odd(lambda x: of["clip"](x) * torch.nan)},
        "gives NaN or Inf for a grey image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_encoders_are_refused(case: str) -> None:
    given, message = ODD[case]
    pipe = pipeline("sd15")
    with pytest.raises(AttachError, match=message):
        guide(pipe, encoders=given(encoders()))
    assert "step" not in vars(pipe.scheduler)
    assert all(weight.requires_grad for weight in pipe.unet.parameters())


def test_weights_of_what_no_gradient_passes_are_left_alone() -> None:
    pipe = pipeline("sd15")
    for of, frozen in ((guidance(m=0.0), 0), (guidance(through="latents"), 1)):
        guiding = guide(pipe, of)
        assert all(weight.requires_grad for weight in pipe.unet.parameters())
        assert not any(getattr(x, "gradient_checkpointing", False) for x in pipe.unet.modules())
        kept = sum(weight.requires_grad for weight in pipe.vae.parameters())
        assert (kept == 0) == bool(frozen)
        guiding.remove()
