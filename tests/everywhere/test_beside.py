"""What people run beside a LoRA keeps its effect, and the bundle has its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor

from ..runtime import pipes
from ..runtime.naive_bundle import Spec, layer_of
from ..runtime.pipes import draw
from .company import COMPANY, new_word, whole
from .hand import by_weights
from .ledger import Ledger
from .stage import CLEAR, Stage, error, render

# diffusers' Euler hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MODES = ("fused", "hooks")
STEPS = 4


@pytest.fixture
def stage(tmp_path: Path, seed: int) -> Stage:
    return Stage(whole(tmp_path), tmp_path, seed)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", COMPANY)
def test_company(stage: Stage, row: str, mode: Any, attached: bool, ledger: Ledger) -> None:
    company, twin = COMPANY[row], stage.twin()
    inputs = company.inputs
    plain = {k: v for k, v in inputs.items() if not k.startswith("ip_adapter")}
    alone = stage.expected(STEPS, **plain)
    company.act(twin)
    with by_weights(twin.unet, stage.specs, range(STEPS)):
        expected = render(twin, STEPS, **inputs)
    without = render(twin, STEPS, **inputs)
    assert error(without, expected) > CLEAR
    assert (error(alone, expected) > CLEAR / 5) == company.matters

    if not attached:
        company.act(stage.pipe)
    with stage.bundle.attach(stage.pipe, mode):
        if attached:
            render(stage.pipe, STEPS, **plain)
            company.act(stage.pipe)
        assert error(render(stage.pipe, STEPS, **inputs), expected) <= 1e-5
    assert torch.equal(render(stage.pipe, STEPS, **inputs), without)
    ledger.ran("beside", f"{row}, enabled while attached" if attached else row, mode)


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_textual_inversion(
    tmp_path: Path, mode: Any, attached: bool, ledger: Ledger, seed: int
) -> None:
    """With layers of the bundle in the text encoder, whose embeddings are swapped for it."""
    path = "text_model.encoder.layers.1.self_attn.q_proj"
    stage = Stage(
        whole(tmp_path),
        tmp_path,
        seed,
        more=[Spec("text_encoder", path, (2, 3), {"gates": [1.0, 0.5]})],
    )
    twin = stage.twin()

    def play(pipe: Any, prompt: str) -> Tensor:
        return render(pipe, STEPS, prompt=prompt, prompt_embeds=None, negative_prompt_embeds=None)

    new_word(twin)
    without = play(twin, "a <new> b")
    content, style = stage.specs[-1].deltas
    layer_of(twin.text_encoder, path).weight.data += content + 0.5 * style
    with by_weights(twin.unet, stage.specs[:-1], range(STEPS)):
        expected = play(twin, "a <new> b")
    with by_weights(twin.unet, stage.specs[:-1], range(STEPS)):
        other = play(twin, "a c b")
    assert min(error(without, expected), error(other, expected)) > CLEAR / 5

    if not attached:
        new_word(stage.pipe)
    with stage.bundle.attach(stage.pipe, mode):
        if attached:
            play(stage.pipe, "a b")
            new_word(stage.pipe)
        assert error(play(stage.pipe, "a <new> b"), expected) <= 1e-5
    assert torch.equal(play(stage.pipe, "a <new> b"), without)
    row = "textual inversion"
    ledger.ran("beside", f"{row}, loaded while attached" if attached else row, mode)


@pytest.mark.parametrize("mode", MODES)
def test_two_pipelines_around_one_unet(stage: Stage, mode: Any, ledger: Ledger) -> None:
    """Whose scheduler, and how many steps, changes from call to call."""
    twin = stage.twin()
    edits = [StableDiffusionImg2ImgPipeline.from_pipe(pipe) for pipe in (stage.pipe, twin)]
    for edit in edits:
        edit.scheduler = pipes.SCHEDULERS["euler"]()
        pipes.quiet(edit)
    picture = draw(1, 4, 8, 8, seed=23)

    def repaint(edit: Any) -> Tensor:
        embeds = {"prompt_embeds": draw(1, 5, 12, seed=1)}
        embeds["negative_prompt_embeds"] = draw(1, 5, 12, seed=2)
        again = torch.Generator().manual_seed(29)
        inputs: dict[str, Any] = {"image": picture, "strength": 0.5, "generator": again}
        return edit(num_inference_steps=6, output_type="latent", **inputs, **embeds).images

    expected = stage.expected(STEPS)
    with by_weights(twin.unet, stage.specs, [3, 4, 5], count=6):
        repainted = repaint(edits[1])
    assert edits[0].unet is stage.root
    with stage.bundle.attach(stage.pipe, mode):
        for _ in range(2):
            assert error(render(stage.pipe, STEPS), expected) <= 1e-5
            assert error(repaint(edits[0]), repainted) <= 1e-5
    assert torch.equal(repaint(edits[0]), repaint(edits[1]))
    assert error(repaint(edits[0]), repainted) > CLEAR
    ledger.ran("beside", "two pipelines around one UNet (from_pipe)", mode)


@pytest.mark.parametrize("mode", MODES)
def test_two_threads(tmp_path: Path, mode: Any, ledger: Ledger, seed: int) -> None:
    steps = 12
    stages = [Stage(pipes.sd(unet=pipes.tiny_unet(i)), tmp_path, seed + i) for i in range(2)]
    expected = [stage.expected(steps, seed=i) for i, stage in enumerate(stages)]
    assert error(*expected) > CLEAR
    together = Barrier(2, timeout=60)

    def play(i: int) -> Tensor:
        with stages[i].bundle.attach(stages[i].pipe, mode):
            together.wait()
            render(stages[i].pipe, steps, seed=i)
            return render(stages[i].pipe, steps, seed=i)

    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(play, range(2)), expected, strict=True):
            assert error(found, wanted) <= 1e-5
    ledger.ran("beside", "another pipeline in another thread", mode)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_inference_mode(stage: Stage, mode: Any, inside: bool, ledger: Ledger) -> None:
    """Around the whole, or around the call alone."""
    expected, base = stage.expected(STEPS), stage.base(STEPS)
    with torch.inference_mode(inside), stage.bundle.attach(stage.pipe, mode):
        with torch.inference_mode():
            found = render(stage.pipe, STEPS)
        with torch.inference_mode(False):
            again = render(stage.pipe, STEPS)
    assert error(found, expected) <= 1e-5
    assert error(again, expected) <= 1e-5
    assert torch.equal(stage.base(STEPS), base)
    assert not any(p.is_inference() for p in stage.root.parameters())
    ledger.ran("beside", "torch.inference_mode", mode)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(stage: Stage, mode: Any, ledger: Ledger) -> None:
    """Of the latents and of the layers' own parameters."""
    stage.pipe.scheduler.set_timesteps(STEPS)
    twin = stage.twin()

    def slopes(pipe: Any) -> list[Tensor]:
        found: list[Tensor] = []
        for t in pipe.scheduler.timesteps:
            x = draw(1, 4, 8, 8, seed=3).requires_grad_()
            pipe.unet(x, t, draw(1, 5, 12, seed=1)).sample.square().sum().backward()
            assert x.grad is not None
            found.append(x.grad)
        return [*found, *(p.grad for p in pipe.unet.parameters())]

    base = slopes(twin)
    twin.unet.zero_grad()
    with by_weights(twin.unet, stage.specs, range(STEPS)):
        expected = slopes(twin)
    with stage.bundle.attach(stage.pipe, mode):
        found = slopes(stage.pipe)
    assert error(base[0], expected[0]) > CLEAR
    for one, wanted in zip(found, expected, strict=True):
        assert error(one, wanted) <= 1e-4
    ledger.ran("beside", "gradients", mode)
