"""Feature-level selection against dense weights and torch's own divergences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from lorabake import runtime
from lorabake.errors import AttachError, OverrideError
from lorabake.runtime import Bundle
from lorabake.runtime.plan import Live

from . import pipes
from .live_oracle import TIE, Naive, attached
from .naive_bundle import LIVE, Spec, all_live, write

STEPS = 3

# diffusers' Euler hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


Case = tuple[Any, Bundle, list[Spec], dict[str, Any]]


def case(pipe: Any, folder: Path, **edit: Any) -> Case:
    """A live bundle for a pipeline."""
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    roots = {name: getattr(pipe, name)}
    specs = all_live(name, roots[name])
    path = write(folder / "live.safetensors", specs, roots, size=0.1, **(LIVE | edit))
    return pipe, runtime.read(path), specs, roots


def check(replay: Any, naive: Naive, case: Case, image: Tensor, **how: Any) -> None:
    """Every choice is the oracle's where its margin exceeds 1e-6, and so is the image."""
    pipe, _, specs, roots = case
    plain = pipes.render(pipe, STEPS, **how)
    rows = {
        layer["module"]: [call for calls in layer["decisions"] for call in calls]
        for layer in replay.report()["layers"]
    }
    naive.ties.update(rows)
    with attached(roots, specs, naive) as run:
        wanted = pipes.render(pipe, STEPS, **how)
    assert rows == {s.module: [[c for c, _ in x] for x in run.get(s.module, [])] for s in specs}
    choices, margins = zip(*(c for calls in run.values() for x in calls for c in x), strict=True)
    assert sum(abs(margin) > TIE for margin in margins) > 0.95 * len(margins)
    assert 0.05 < sum(choices) / len(choices) < 0.95
    torch.testing.assert_close(image, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.05


@pytest.mark.parametrize("criterion", ["kl", "js", "cosine", "dot"])
@pytest.mark.parametrize("make", [pipes.sd, pipes.flux], ids=["unet", "dit"])
def test_it_chooses_as_dense_weights_do(make: Any, criterion: str, tmp_path: Path) -> None:
    pipe, bundle, *_ = these = case(make(), tmp_path)
    plain = pipes.render(pipe, STEPS)
    with bundle.attach(pipe, criterion=criterion) as replay:
        image = pipes.render(pipe, STEPS)
    check(replay, Naive(2 if make is pipes.sd else 1, criterion), these, image)
    assert torch.equal(pipes.render(pipe, STEPS), plain)


@pytest.mark.parametrize("make", [pipes.sdxl, pipes.flux], ids=["unet", "dit"])
def test_an_image_does_not_depend_on_its_batch(make: Any, tmp_path: Path) -> None:
    pipe, bundle, *_ = case(make(), tmp_path)

    def rows(seed: int) -> list[list[int] | None]:
        with bundle.attach(pipe) as replay:
            images.append(pipes.render(pipe, STEPS, seed=seed) if seed else together(pipe))
        return [call for x in replay.report()["layers"] for p in x["decisions"] for call in p]

    images: list[Tensor] = []
    batch, *single = [rows(seed) for seed in (0, 10, 20, 30, 40)]
    halves = 2 if make is pipes.sdxl else 1
    for i, alone in enumerate(single):
        for call, mine in zip(batch, alone, strict=True):
            assert call is not None
            assert [call[i + 4 * half] for half in range(halves)] == mine
        error = (images[0][i : i + 1] - images[1 + i]).abs().max() / images[1 + i].abs().max()
        assert error < 1e-4
    assert len({str(row) for row in single}) > 1


def together(pipe: Any) -> Tensor:
    """The images of four seeds in one batch."""
    parts: dict[str, list[Tensor]] = {}
    call = type(pipe).__call__

    def keep(self: Any, **given: Any) -> Any:
        for name, value in given.items():
            if isinstance(value, Tensor):
                parts.setdefault(name, []).append(value)
        rest = {k: v for k, v in given.items() if not isinstance(v, Tensor)}
        if len(parts["prompt_embeds"]) < 4:
            return type("Out", (), {"images": None})
        return call(self, **rest, **{k: torch.cat(v) for k, v in parts.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe), "__call__", keep)
        return [pipes.render(pipe, STEPS, seed=seed) for seed in (10, 20, 30, 40)][-1]


def test_a_batch_can_decide_together(tmp_path: Path) -> None:
    pipe, bundle, *_ = these = case(pipes.sd(), tmp_path)
    with bundle.attach(pipe, scope="batch") as replay:
        image = pipes.render(pipe, STEPS, batch=2)
    check(replay, Naive(4, batch=True), these, image, batch=2)


def test_strengths_act_on_top_and_do_not_choose(tmp_path: Path) -> None:
    pipe, bundle, *_ = these = case(pipes.sd(), tmp_path)
    with bundle.attach(
        pipe, "live", temperature=2.0, content_strength=0.5, style_strength=1.5
    ) as replay:
        image = pipes.render(pipe, STEPS)
    check(replay, Naive(2, temperature=2.0, strengths=(0.5, 1.5)), these, image)


@pytest.mark.parametrize("make", [pipes.sd, pipes.flux], ids=["unet", "dit"])
def test_some_tokens_can_stand_for_all(make: Any, tmp_path: Path) -> None:
    pipe, bundle, *_ = these = case(make(), tmp_path)
    with bundle.attach(pipe, tokens=7) as replay:
        image = pipes.render(pipe, STEPS)
    check(replay, Naive(2 if make is pipes.sd else 1, tokens=7), these, image)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_choose_nearly_alike(dtype: torch.dtype, tmp_path: Path) -> None:
    pipe, bundle, *_ = case(pipes.sd(), tmp_path)
    pipe.scheduler.set_timesteps(2)

    def choices(kind: torch.dtype) -> list[int]:
        pipe.unet.to(kind)
        latents = pipes.draw(2, 4, 8, 8, seed=1).to(kind)
        text = pipes.draw(2, 5, 12, seed=2).to(kind)
        with bundle.attach(pipe) as replay, torch.no_grad():
            out = pipe.unet(latents, pipe.scheduler.timesteps[0], text).sample
        assert out.dtype == kind
        calls = [y for x in replay.report()["layers"] for p in x["decisions"] for y in p]
        return [choice for call in calls for choice in call or ()]

    wide, short = choices(torch.float32), choices(dtype)
    share = sum(a == b for a, b in zip(wide, short, strict=True)) / len(wide)
    assert share == 1 if dtype == torch.float64 else share > 0.9


def test_what_samples_share_is_chosen_once(tmp_path: Path) -> None:
    pipe, bundle, *_ = case(pipes.sd(), tmp_path)
    layer = next(
        x.module for x in bundle.manifest.layers if "attn1" in x.module and isinstance(x.rule, Live)
    )
    pipe.scheduler.set_timesteps(2)

    class Shared(torch.nn.Module):
        """Gives a layer one row, whatever the batch."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.base_layer = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x[:1]).expand(len(x), *([-1] * (x.ndim - 1)))

    block, _, name = layer.rpartition(".")
    setattr(pipe.unet.get_submodule(block), name, Shared(pipe.unet.get_submodule(layer)))
    with bundle.attach(pipe) as replay, torch.no_grad():
        pipe.unet(
            pipes.draw(3, 4, 8, 8, seed=1),
            pipe.scheduler.timesteps[0],
            pipes.draw(3, 5, 12, seed=2),
        )
    (found,) = [x for x in replay.report()["layers"] if x["module"] == layer]
    assert found["decisions"][0][0] in ([0, 0, 0], [1, 1, 1])


def test_the_mode_must_fit_the_bundle(tmp_path: Path) -> None:
    pipe, bundle, specs, roots = case(pipes.sd(), tmp_path)
    with pytest.raises(AttachError, match=r"chooses live, .* Use the mode auto, or make a static"):
        bundle.attach(pipe, "fused")
    with bundle.attach(pipe, "hooks") as replay:
        modes = {layer["mode"] for layer in replay.report()["layers"]}
    assert modes == {"hooks", "live"}
    with bundle.attach(pipe) as replay:
        rows = replay.report()["layers"]
    assert {(x["mode"], x["why"]) for x in rows} == {("live", "chosen live"), ("fused", "")}
    for spec in specs:
        spec.rule = {"gates": [1.0, 1.0]}
    static = runtime.read(write(tmp_path / "static.safetensors", specs, roots))
    with pytest.raises(AttachError, match="has its plan, there is nothing to choose live"):
        static.attach(pipe, "live")
    with pytest.raises(OverrideError, match=r"^scope: a bundle .* chooses nothing live"):
        static.attach(pipe, scope="batch")


def test_what_is_live_has_no_selection_beforehand(tmp_path: Path) -> None:
    _, bundle, specs, _ = case(pipes.sd(), tmp_path)
    with pytest.raises(OverrideError, match=r"chooses live, .* Make a static bundle"):
        bundle.selection(3)
    for layer, spec in zip(bundle.manifest.layers, specs, strict=True):
        only = None if all(spec.ranks) else int(spec.ranks[0] == 0)
        assert bundle.select(layer, 2) == [only, only]


@pytest.mark.parametrize(
    ("name", "value"),
    [("criterion", "mse"), ("scope", "image"), ("tokens", -1), ("tokens", 1.5),
     ("temperature", 1e-4), ("temperature", float("nan")), ("tokenz", 1)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    pipe, bundle, *_ = case(pipes.sd(), tmp_path)
    with pytest.raises(OverrideError, match=f"^{name}: "):
        bundle.attach(pipe, **{name: value})


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_one_graph_chooses_for_a_whole_image(tmp_path: Path) -> None:
    pipe, bundle, *_ = case(pipes.flux(1), tmp_path)
    with bundle.attach(pipe) as replay:
        wanted = pipes.render(pipe, STEPS)
    graphs = CompileCounter()
    torch.compiler.reset()
    inner, pipe.transformer = pipe.transformer, torch.compile(
        pipe.transformer, backend=graphs, fullgraph=True
    )  # fmt: skip
    with bundle.attach(pipe) as compiled:
        image = pipes.render(pipe, STEPS)
    assert graphs.frame_count == 1
    torch.testing.assert_close(image, wanted, rtol=1e-4, atol=1e-4)
    rows = [[x["decisions"] for x in each.report()["layers"]] for each in (replay, compiled)]
    assert rows[0] == rows[1]
    pipe.transformer = inner
    torch.compiler.reset()


def test_what_checkpointing_computes_again_is_chosen_as_before(tmp_path: Path) -> None:
    pipe, bundle, *_ = case(pipes.sd(), tmp_path)
    pipe.scheduler.set_timesteps(2)

    def gradient() -> Tensor:
        x, text = pipes.draw(4, 4, 8, 8, seed=1).requires_grad_(), pipes.draw(4, 5, 12, seed=2)
        with bundle.attach(pipe) as replay:
            out = pipe.unet(x, pipe.scheduler.timesteps[0], text).sample
            # Another call, of half as many samples, before the first one's gradient is taken.
            pipe.unet(pipes.draw(2, 4, 8, 8, seed=3), pipe.scheduler.timesteps[0], text[:2])
            (found,) = torch.autograd.grad(out.square().sum(), x)
        rows = [p for x in replay.report()["layers"] for p in x["decisions"]]
        assert {tuple(len(call) for call in row if call) for row in rows} == {(4, 2)}
        return found

    wanted = gradient()
    pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), wanted)
