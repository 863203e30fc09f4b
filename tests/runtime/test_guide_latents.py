"""x̂_0 against the schedulers' own, pictures against the pipelines' own, and a call's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from lorabake.runtime import AttachError
from lorabake.runtime.decoder import Decoder
from lorabake.runtime.predicted import original, prediction
from lorabake.runtime.tape import Tape

from .guided import pipeline, run
from .pipes import draw

lib: Any = diffusers
SHOWN: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
}
"""Schedulers that tell x̂_0 with every step."""

SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++": ("DPMSolverMultistepScheduler", {}),
    "DPM++ Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ flow": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]

pytestmark = pytest.mark.filterwarnings("ignore:__array(_wrap)?__ :DeprecationWarning")


def steps(scheduler: Any) -> Any:
    """Each timestep, a sample and a prediction there."""
    scheduler.set_timesteps(5)
    for i, t in enumerate(scheduler.timesteps):
        x, out = draw(2, 4, 3, 3, seed=2 * i), draw(2, 4, 3, 3, seed=2 * i + 1)
        scheduler.scale_model_input(x, t)
        yield t, x, out


@pytest.mark.parametrize(
    ("name", "predicts"),
    # diffusers has not implemented Euler Ancestral's "sample".
    [(n, p) for n in SHOWN for p in PREDICTIONS if ("Ancestral" in n, p) != (True, "sample")],
)
def test_the_scheduler_shows_the_same(name: str, predicts: str) -> None:
    scheduler = getattr(lib, name)(prediction_type=predicts, **SHOWN[name])
    for t, x, out in steps(scheduler):
        found = original(scheduler, t, x, out)
        shown = scheduler.step(out, t, x).pred_original_sample
        torch.testing.assert_close(found, shown, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_solver_converts_to_the_same(name: str, predicts: str) -> None:
    kind, config = SOLVERS[name]
    scheduler = getattr(lib, kind)(**({"prediction_type": predicts} | config))
    for t, x, out in steps(scheduler):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        found = original(scheduler, t, x, out)
        shown = scheduler.convert_model_output(out, sample=x)
        if kind.startswith("DEIS"):  # that gives ε
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
            shown = (x - sigma * shown) / alpha
        torch.testing.assert_close(found, shown, rtol=1e-4, atol=1e-4)
        scheduler.step(out, t, x)


NOISED = ["PNDMScheduler", "LCMScheduler", "TCDScheduler", "LMSDiscreteScheduler"]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [*NOISED, "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_what_was_noised_is_found(name: str, predicts: str) -> None:
    scheduler = getattr(lib, name)(prediction_type=predicts)
    scheduler.set_timesteps(4)
    clean, noise = draw(2, 4, 3, 3, seed=1).double(), draw(2, 4, 3, 3, seed=2).double()
    t = scheduler.timesteps[1]
    x = scheduler.add_noise(clean, noise, t[None].expand(2))
    kept = scheduler.alphas_cumprod[int(t)].double()
    out = noise if predicts == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * clean
    torch.testing.assert_close(original(scheduler, t, x, out), clean, rtol=1e-4, atol=1e-4)


def test_what_flows_is_found() -> None:
    scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    clean, noise = draw(2, 16, 4, seed=1), draw(2, 16, 4, seed=2)
    for t in scheduler.timesteps:
        x = scheduler.scale_noise(clean, t[None].expand(2), noise)
        out = noise - clean
        torch.testing.assert_close(original(scheduler, t, x, out), clean, rtol=1e-5, atol=1e-5)
        scheduler.step(out, t, x)


@pytest.mark.parametrize(
    "scheduler",
    [
        lib.EDMEulerScheduler(),
        lib.DPMSolverSinglestepScheduler(),
        lib.DDIMScheduler(prediction_type="noise"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_others_are_refused(scheduler: Any) -> None:
    with pytest.raises(AttachError, match=rf"{type(scheduler).__name__}.*guidance=False"):
        prediction(scheduler)


@pytest.mark.parametrize(
    ("family", "tiny"),
    [(family, False) for family in ("sd15", "sdxl", "sdxl, by channel", "sd3", "flux")]
    + [("sd15", True), ("sd3", True)],
)
def test_pictures_are_the_pipelines_own(family: str, tiny: bool) -> None:
    pipe = pipeline(family.partition(",")[0])
    if "channel" in family:
        pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0], latents_std=[2, 1, 3, 0.5])
    if tiny:
        torch.manual_seed(3)
        pipe.vae = lib.AutoencoderTiny(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.7,
            shift_factor=0.2,
        ).eval()  # fmt: skip
        if family == "sd15":  # whose pipeline knows of no shift
            pipe.vae.register_to_config(shift_factor=0.0)
    pictures: list[Tensor] = []
    z = run(pipe, 1, count=2)[-1]
    vae, pipe.vae = pipe.vae, pipe.vae if family != "sd15" else None
    places = torch.tensor([[0, i // 4, i % 4] for i in range(16)] * 2)
    with torch.no_grad():
        found = Decoder(pipe, vae if pipe.vae is None else None, "").images(z, places)
    pipe.vae = vae
    given: dict[str, Any] = {"output_type": "pt", "callback_on_step_end": None}
    pipe.image_processor.postprocess = lambda image, **_: pictures.append(image) or [image]
    run(pipe, 1, count=2, **given)
    torch.testing.assert_close(found, pictures[0] / 2 + 0.5, rtol=1e-5, atol=1e-5)


def test_other_latents_are_refused() -> None:
    pipe = pipeline("sd15")
    decoder = Decoder(pipe, None, "a.safetensors")
    for shape in ((1, 4, 2, 8, 8), (1, 16, 16), (1, 16, 8, 8)):
        with pytest.raises(AttachError, match=r"AutoencoderKL cannot decode.*decoder="):
            decoder.images(torch.zeros(shape))


class Denoiser(nn.Module):
    """More channels and tokens come in beside the latents, and more come out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(6, 9).double(), nn.Linear(5, 7).double()

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        mixed = self.second(torch.tanh(self.first(hidden_states)).mT).mT
        return (mixed,)


COMBINED: dict[str, Callable[..., Tensor]] = {
    "guidance": lambda a, b, c: a + 5.0 * (b - a),
    "rescaled": lambda a, b, c: 0.37 * (a + 5.0 * (b - a)),
    "negated": lambda a, b, c: -b,
    "three": lambda a, b, c: a + 3.0 * (b - a) + 1.5 * (b - c),
    "in bfloat16": lambda a, b, c: (a + 5.0 * (b - a)).bfloat16().double(),
}


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("calls", [1, 3])
def test_the_gradient_of_calls(name: str, calls: int) -> None:
    """Of three conditions, in one call or in three, for two samples of 3 tokens with 4 channels."""
    model, tape = Denoiser(), Tape()
    x, cotangent = draw(2, 3, 4, seed=1).double(), draw(2, 3, 4, seed=2).double()
    beside = draw(6, 5, 6, seed=3).double()

    def inputs(x: Tensor) -> Tensor:
        wide = nn.functional.pad(0.6 * x.repeat(3, 1, 1), (0, 2, 0, 2))
        own = nn.functional.pad(torch.ones(6, 3, 4).double(), (0, 2, 0, 2))
        return wide + beside * (1 - own)

    def combined(outputs: Tensor) -> Tensor:
        return COMBINED[name](*outputs[:, :3, :4].chunk(3))

    outputs: list[Tensor] = []
    for rows in inputs(x).chunk(calls):
        with torch.no_grad():
            args, kwargs = tape.open(model, (), {"hidden_states": rows})
            result = tape.close(model(*args, **kwargs))
            assert not torch.is_grad_enabled()
            assert not result[0].requires_grad
            outputs.append(result[0])
    found = tape.pull(x, combined(torch.cat(outputs)), cotangent)
    leaf = x.clone().requires_grad_()
    if name == "in bfloat16":
        expected = COMBINED["guidance"](*model(inputs(leaf))[0][:, :3, :4].chunk(3))
    else:
        expected = combined(model(inputs(leaf))[0])
    (wanted,) = torch.autograd.grad(expected, leaf, cotangent)
    close = 0.05 if name == "in bfloat16" else 1e-7
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)


def test_calls_that_explain_nothing() -> None:
    model, tape = Denoiser(), Tape()
    x = draw(2, 5, 6, seed=1).double()
    args, kwargs = tape.open(model, (x,), {})
    out = tape.close(model(*args, **kwargs))[0].detach()
    torch.set_grad_enabled(True)
    sample, output = x[:, :3, :4], out[:, :3, :4]
    with pytest.raises(AttachError, match=r"latents that the scheduler.*through=.latents"):
        tape.pull(sample + 1, output, output)
    with pytest.raises(AttachError, match=r"weighted sum.*through=.latents"):
        tape.pull(sample, output + 1, output)
    with pytest.raises(AttachError, match="do not fit"):
        tape.pull(sample[:1].expand(3, -1, -1), output, output)
