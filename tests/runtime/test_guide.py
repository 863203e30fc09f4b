"""A guided pipeline: what runs, what is left alone, and what is left behind."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorabake.runtime import AttachError
from lorabake.runtime.guidance import Guidance
from lorabake.runtime.solver import carry

from .guided import conditions, encoders, guidance, guide, latents, pipeline, run
from .pipes import draw

lib: Any = diffusers
SCHEDULERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "DDIM": ("sd15", lambda: lib.DDIMScheduler(clip_sample=False, steps_offset=1)),
    "PNDM": ("sd15", lambda: lib.PNDMScheduler(skip_prk_steps=True, steps_offset=1)),
    "Euler": ("sd15", lambda: lib.EulerDiscreteScheduler(steps_offset=1)),
    "Heun": ("sd15", lambda: lib.HeunDiscreteScheduler()),
    "DPM++": ("sd15", lambda: lib.DPMSolverMultistepScheduler()),
    "UniPC": ("sd15", lambda: lib.UniPCMultistepScheduler()),
    "flow": ("flux", lambda: None),
    "flow, SD3": ("sd3", lambda: None),
}
THROUGH: list[Any] = ["latents", "denoiser"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@contextmanager
def guided(pipe: Any, of: Guidance | None = None, **parts: Any) -> Generator[Any]:
    guiding = guide(pipe, of, **parts)
    try:
        yield guiding
    finally:
        guiding.remove()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_moves_the_latents_and_without_m_it_only_looks(name: str) -> None:
    family, scheduler = SCHEDULERS[name]
    pipe = pipeline(family, scheduler=scheduler())
    plain = run(pipe, 3, count=2)
    with guided(pipe, guidance(m=0.0, through="denoiser")) as looking:
        assert all(map(torch.equal, run(pipe, 3, count=2), plain))
    with guided(pipe, guidance(m=0.0, through="latents")):
        assert all(map(torch.equal, run(pipe, 3, count=2), plain))
    with guided(pipe, guidance(m=5.0, through="denoiser")) as guiding:
        found = run(pipe, 3, count=2)
    assert float((found[-1] - plain[-1]).abs().max()) > 1e-3
    assert found[-1].isfinite().all()
    # Solvers that look ahead first are refined where they arrive.
    times = {"PNDM": [1, 1, 3], "Heun": [1, 3]}.get(name, [0, 1, 2])
    count = len(pipe.scheduler.timesteps)
    for seen, norms in ((looking.report(), 0), (guiding.report(), 2)):
        assert [round(one["progress"] * count) for one in seen][: len(times)] == times
        assert all(len(one["score"]) == 2 and len(one["gradient"]) == norms for one in seen)
    assert guiding.report()[0]["score"] == pytest.approx(looking.report()[0]["score"], rel=1e-5)


@pytest.mark.parametrize("predicts_x0", [True, False])
def test_a_corrector_does_not_undo_it(predicts_x0: bool) -> None:
    """UniPC computes each sample anew at the next step; the change must be in what it gets."""
    corrected: list[Tensor] = []
    change = 0.1 * draw(1, 4, 8, 8, seed=9)
    for moved in (False, True):
        scheduler = lib.UniPCMultistepScheduler(predict_x0=predicts_x0, prediction_type="sample")
        if not predicts_x0:
            scheduler.register_to_config(prediction_type="epsilon")
        scheduler.set_timesteps(4)
        x = draw(1, 4, 8, 8, seed=1)
        for i, t in enumerate(scheduler.timesteps[:3]):
            x = scheduler.step(draw(1, 4, 8, 8, seed=2 + i), t, x).prev_sample
            if i == 1 and moved:
                carry(scheduler, change)
                x = x - change
        corrected.append(scheduler.last_sample)
    torch.testing.assert_close(corrected[0] - corrected[1], change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("through", THROUGH)
def test_samples_do_not_depend_on_each_other(through: Any) -> None:
    pipe = pipeline("sd15", torch.float64)
    with guided(pipe, guidance(through=through)):
        together = run(pipe, 2, count=3)[-1]
        for i in range(3):
            given: dict[str, Any] = {"latents": latents(pipe, 3), **conditions(pipe, 3)}
            alone = run(pipe, **{name: value[i : i + 1] for name, value in given.items()})[-1]
            torch.testing.assert_close(alone[0], together[i], rtol=1e-8, atol=1e-8)


def test_m_means_the_same_for_latents_of_every_size() -> None:
    """Euler's steps are DDIM's, in larger latents."""
    found: list[Tensor] = []
    for name in ("DDIM", "Euler"):
        pipe = pipeline("sd15", torch.float64, SCHEDULERS[name][1]())
        pipe.scheduler.register_to_config(timestep_spacing="leading")
        plain = run(pipe, 3)[-1]
        with guided(pipe, guidance(m=3.0)):
            found += [plain, run(pipe, 3)[-1]]
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-4)
    assert float((found[1] - found[0]).abs().max()) > 0.1


@pytest.mark.parametrize("through", THROUGH)
def test_every_other_step_is_left_alone(through: Any) -> None:
    pipe, models = pipeline("sd15"), encoders()
    calls: list[bool] = []
    for model in models.values():
        model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    graphs: list[bool] = []
    pipe.unet.conv_out.register_forward_hook(lambda _, __, out: graphs.append(out.requires_grad))
    with guided(pipe, guidance(every=2, through=through), encoders=models) as guiding:
        calls.clear()
        run(pipe, 4)
    assert [one["progress"] for one in guiding.report()] == [0.0, 0.5]
    assert calls == [True] * 4
    through_it = through == "denoiser"
    assert graphs[:4] == [through_it, False, through_it, False]


class StoppedError(Exception):
    pass


def state(pipe: Any, models: dict[str, Any]) -> list[Any]:
    """All that a guide could leave behind."""
    found: list[Any] = [dict(vars(pipe.scheduler)).keys(), torch.is_grad_enabled()]
    for root in filter(None, (pipe.unet, pipe.vae, *models.values())):
        for name, module in root.named_modules():
            own = vars(module)
            found.append((name, sorted(own), own.get("gradient_checkpointing")))
            found += [len(own[k]) for k in own if k.endswith("_hooks") or "hooks_" in k]
        found += [
            (w.data_ptr(), w.dtype, w.requires_grad, w.grad, w.detach().clone())
            for w in root.parameters()
        ]
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("through", THROUGH)
def test_nothing_is_left_behind(through: Any) -> None:
    pipe, models = pipeline("sd15"), encoders()
    pipe.unet.conv_in.weight.requires_grad_(False)
    pipe.vae.enable_gradient_checkpointing()
    plain = run(pipe)
    before = state(pipe, models)
    with guided(pipe, guidance(through=through), encoders=models):
        kept = run(pipe)
    assert same(state(pipe, models), before)

    def stop(*_: Any) -> None:
        raise StoppedError

    with guided(pipe, guidance(through=through), encoders=models):
        inside = (pipe.unet.conv_out, pipe.vae.decoder.conv_out, models["dino"])
        for broken in (*inside, pipe.unet):  # the last one after the guide has heard of the call
            handle = broken.register_forward_hook(stop)
            with pytest.raises(StoppedError):
                run(pipe, count=2)
            handle.remove()
            assert torch.is_grad_enabled()
        assert all(map(torch.equal, run(pipe), kept))
    assert same(state(pipe, models), before)
    assert all(map(torch.equal, run(pipe), plain))


def test_the_gradient_is_taken_where_pipelines_are_told_not_to() -> None:
    pipe = pipeline("sd15")
    with guided(pipe, guidance(through="latents")):
        expected = run(pipe)[-1]
        with torch.inference_mode():
            found = run(pipe)[-1]
        assert torch.equal(found, expected)
    with (
        guided(pipe, guidance(through="denoiser")),
        torch.inference_mode(),
        pytest.raises(AttachError, match=r"inference_mode.*through=.latents"),
    ):
        run(pipe)
    assert torch.is_grad_enabled()


def test_it_follows_the_scheduler() -> None:
    """One put in later, and that of another pipeline around the same denoiser."""
    pipe = pipeline("sd15")
    first = pipe.scheduler
    with guided(pipe) as guiding:
        assert list(inspect.signature(first.step).parameters)[:3] == [
            "model_output", "timestep", "sample",
        ]  # fmt: skip
        assert "eta" in inspect.signature(first.step).parameters
        with pytest.raises(AttachError, match="copied"):
            copy.deepcopy(first)
        pipe.scheduler = lib.EulerDiscreteScheduler.from_config(first.config)
        run(pipe)
        other = lib.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
        other.scheduler = lib.DPMSolverMultistepScheduler.from_config(first.config)
        other.set_progress_bar_config(disable=True)
        run(other)
        assert len(guiding.report()) == 4
        pipe.scheduler = lib.DPMSolverSinglestepScheduler.from_config(first.config)
        with pytest.raises(AttachError, match="DPMSolverSinglestepScheduler"):
            run(pipe)
    assert not any("step" in vars(one) for one in (first, pipe.scheduler, other.scheduler))


def test_half_precision() -> None:
    """In bfloat16, and with a VAE in float16 that is computed in float32."""
    pipe = pipeline("sdxl", torch.bfloat16)
    with guided(pipe, guidance(through="denoiser"), encoders=encoders()):
        assert run(pipe)[-1].isfinite().all()
    pipe = pipeline("sdxl")
    pipe.vae.half()
    seen: list[torch.dtype] = []
    pipe.vae.decoder.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    before = [w.data_ptr() for w in pipe.vae.parameters()]
    with guided(pipe, guidance(through="latents")):
        found = run(pipe)[-1]
    assert [w.data_ptr() for w in pipe.vae.parameters()] == before
    assert set(seen) == {torch.float32}
    pipe.vae.float()
    with guided(pipe, guidance(through="latents")):
        assert torch.equal(run(pipe)[-1], found)


@torch.inference_mode()
def inferred() -> Any:
    return pipeline("sd15").vae


REFUSED: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "no encoders": (lambda _: {"encoders": {}}, r"clip \(some/clip\) and dino \(some/dino\) are"),
    "one encoder": (
        lambda _: {"encoders": {"clip": encoders()["clip"]}},
        r"dino \(some/dino\) is missing.*lorabake\.encoders\(bundle\).*guidance=False",
    ),
    "another size": (
        lambda _: {"encoders": dict.fromkeys(("clip", "dino"), encoders()["clip"])},
        r"dino encoder gives embeddings of shape \[1, 6\].* 8 numbers.*some/dino.*guidance=False",
    ),
    "no gradient": (
        lambda _: {"encoders": encoders() | {"clip": torch.no_grad()(encoders()["clip"])}},
        r"clip encoder lets no gradient through.*guidance=False",
    ),
    "weights of inference mode": (
        lambda pipe: setattr(pipe, "vae", inferred()) or {},
        "AutoencoderKL, whose weights were made in .*Load it outside",
    ),
    "no VAE": (
        lambda pipe: setattr(pipe, "vae", None) or {},
        "without a VAE cannot decode.*decoder=.*guidance=False",
    ),
    "no decoder": (lambda _: {"decoder": nn.Linear(1, 1)}, "decoder=Linear.*cannot decode"),
    "a scheduler": (
        lambda pipe: setattr(pipe, "scheduler", lib.DPMSolverSinglestepScheduler()) or {},
        "DPMSolverSinglestepScheduler.*DDIM, .*guidance=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_is_told_before_anything_is_touched(name: str) -> None:
    pipe, models = pipeline("sd15"), encoders()
    spoil, message = REFUSED[name]
    given: dict[str, Any] = {"encoders": models} | spoil(pipe)
    before = state(pipe, models)
    with pytest.raises(AttachError, match=message):
        guide(pipe, **given)
    assert same(state(pipe, models), before)


def test_what_cannot_be_differentiated_is_refused() -> None:
    pipe = pipeline("sd15")
    pipe.scheduler = lib.DDIMScheduler(prediction_type="sample", steps_offset=1)
    with pytest.raises(AttachError, match=r"predicts x̂_0 itself.*through=.denoiser"):
        guide(pipe, guidance(through="latents"))
    with guided(pipe, guidance(through="denoiser")) as guiding:
        run(pipe)
    assert min(guiding.report()[0]["gradient"]) > 0
    pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
    with (
        guided(pipe, guidance(through="denoiser")),
        pytest.raises(AttachError, match=r"gradient through the denoiser failed.*through=.latents"),
    ):
        run(pipe)
    pipe = pipeline("sd15")
    with guided(pipe, guidance(through="denoiser")):
        handle = pipe.unet.register_forward_hook(lambda _, __, out: (out[0] * out[0].abs(),))
        with pytest.raises(AttachError, match=r"weighted sum.*through=.latents"):
            run(pipe)
        handle.remove()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with (
        guided(pipe),
        pytest.raises(AttachError, match=r"R is NaN or infinite at progress 0.*float32.*guidance"),
    ):
        run(pipe)


@pytest.mark.parametrize("through", THROUGH)
def test_a_gradient_that_is_none_is_refused(through: Any) -> None:
    """R is a number, its gradient is not."""
    pipe = pipeline("sd15")

    def spoil(_: nn.Module, __: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda g: g * torch.nan)

    handle = pipe.vae.decoder.conv_out.register_forward_hook(spoil)
    with (
        guided(pipe, guidance(through=through)),
        pytest.raises(AttachError, match=r"the gradient of the guidance is NaN .* progress 0"),
    ):
        run(pipe)
    handle.remove()
