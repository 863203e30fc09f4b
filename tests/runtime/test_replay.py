"""Replay against a naive reference that sets every weight to W0 + the selected ΔW, step by step."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabake.errors import OverrideError
from lorabake.runtime import read

from . import pipes
from .naive_bundle import Spec, gates, one_of_each, write

MODES = ("fused", "hooks")

# diffusers' Euler and Heun hand torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Case:
    """A pipeline, a bundle for it, and the reference."""

    def __init__(self, pipe: Any, folder: Path, **options: Any) -> None:
        self.pipe = pipe
        self.name = "unet" if hasattr(pipe, "unet") else "transformer"
        self.root: nn.Module = getattr(pipe, self.name)
        self.specs = one_of_each(self.name, self.root)
        roots = {self.name: self.root}
        self.bundle = read(write(folder / "b.safetensors", self.specs, roots, **options))

    def reference(
        self,
        steps: int,
        positions: list[int] | None = None,
        strengths: tuple[float, float] = (1.0, 1.0),
        plan: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Latents of a run whose weights are set by hand between the steps."""
        pipe = copy.copy(self.pipe)
        root = copy.deepcopy(self.root)
        setattr(pipe, self.name, root)
        places = positions or list(range(steps))
        base = {s.module: root.get_submodule(s.module).weight.detach().clone() for s in self.specs}  # type: ignore[operator] - a weight

        def set_weights(i: int) -> None:
            for s in self.specs:
                g = gates(s, places[i], len(places), **(plan or {}))
                delta = sum(g[k] * strengths[k] * s.deltas[k] for k in (0, 1))
                weight: Any = root.get_submodule(s.module).weight
                weight.data = (base[s.module].float() + delta).to(weight.dtype)

        def after(_: Any, i: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
            if i + 1 < len(places):
                set_weights(i + 1)
            return state

        set_weights(0)
        return pipes.render(pipe, steps, callback_on_step_end=after, **inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def case(folder: Path) -> Case:
    return Case(pipes.sd(), folder)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("cfg", [True, False])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [1, 4, 25, 50])
def test_equals_the_reference(case: Case, steps: int, scheduler: str, cfg: bool) -> None:
    case.pipe.scheduler = pipes.SCHEDULERS[scheduler]()
    expected = case.reference(steps, cfg=cfg)
    for mode in MODES:
        with case.bundle.attach(case.pipe, mode):
            assert error(pipes.render(case.pipe, steps, cfg=cfg), expected) <= 1e-5
    if steps == 4:
        assert error(pipes.render(case.pipe, steps, cfg=cfg), expected) > 1e-2


@pytest.mark.parametrize("make", [pipes.sdxl, pipes.flux])
def test_other_denoisers(make: Any, folder: Path) -> None:
    other = Case(make(), folder)
    expected = other.reference(6)
    for mode in (*MODES, "auto"):
        with other.bundle.attach(other.pipe, mode):
            assert error(pipes.render(other.pipe, 6), expected) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_images_in_a_row_and_prompts_in_a_batch(case: Case, mode: Any) -> None:
    with case.bundle.attach(case.pipe, mode):
        first = pipes.render(case.pipe, 5, seed=1)
        second = pipes.render(case.pipe, 7, seed=2)
        pair = pipes.render(case.pipe, 5, batch=2, seed=3)
        assert torch.equal(pipes.render(case.pipe, 5, seed=1), first)
    assert error(first, case.reference(5, seed=1)) <= 1e-5
    assert error(second, case.reference(7, seed=2)) <= 1e-5
    assert error(pair, case.reference(5, batch=2, seed=3)) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_a_repeated_timestep_has_its_first_position(case: Case, mode: Any) -> None:
    case.pipe.scheduler = pipes.SCHEDULERS["heun"]()
    expected = case.reference(4, positions=[0, 1, 1, 3, 3, 5, 5])
    with case.bundle.attach(case.pipe, mode) as replay:
        assert error(pipes.render(case.pipe, 4), expected) <= 1e-5
        assert replay.report()["progress"] == [0, 1 / 7, 3 / 7, 5 / 7]


@pytest.mark.parametrize("mode", MODES)
def test_guidance_in_two_calls_in_any_order(case: Case, mode: Any) -> None:
    """Also a retry of a step, and a run that starts late: only the timestep counts."""
    case.pipe.scheduler = pipes.SCHEDULERS["euler"]()
    case.pipe.scheduler.set_timesteps(8)
    x, text = pipes.draw(1, 4, 8, 8, seed=0), pipes.draw(1, 5, 12, seed=1)
    clean = copy.deepcopy(case.root)
    with torch.no_grad(), case.bundle.attach(case.pipe, mode):
        for i in (6, 2, 2, 7, 0):
            t = case.pipe.scheduler.timesteps[i]
            found = case.pipe.unet(x, t, text).sample
            again = case.pipe.unet(sample=x, timestep=t.expand(1), encoder_hidden_states=text)
            assert torch.equal(found, again.sample)
            root: Any = copy.deepcopy(clean)
            for s in case.specs:
                g = gates(s, i, 8)
                root.get_submodule(s.module).weight += g[0] * s.deltas[0] + g[1] * s.deltas[1]
            assert error(found, root(x, t, text).sample) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_overrides(case: Case, mode: Any) -> None:
    case.pipe.scheduler = pipes.SCHEDULERS["ddim"]()
    changed: dict[str, Any] = {"alpha": 1.1, "beta": 0.7, "gamma": 1.3}
    expected = case.reference(9, strengths=(0.8, 1.4), plan={"modulo": True, **changed}, cfg=False)
    with case.bundle.attach(
        case.pipe, mode, content_strength=0.8, style_strength=1.4, pattern="modulo", **changed
    ):
        assert error(pipes.render(case.pipe, 9, cfg=False), expected) <= 1e-5


def test_a_scale_in_the_file_and_no_strength(folder: Path) -> None:
    scale = {"pattern": "modulo", "alpha": 1.5, "beta": 1.3, "gamma": 1.1}
    other = Case(pipes.sd("euler"), folder, scale=scale)
    expected = other.reference(10, plan={"modulo": True, "beta": 1.3, "gamma": 1.1})
    for mode in MODES:
        with other.bundle.attach(other.pipe, mode):
            assert error(pipes.render(other.pipe, 10), expected) <= 1e-5
    plain = pipes.render(other.pipe, 3)
    for mode in MODES:
        with other.bundle.attach(other.pipe, mode, content_strength=0, style_strength=0):
            assert torch.equal(pipes.render(other.pipe, 3), plain)


def test_half_precision_is_rounded_once(folder: Path) -> None:
    """A bfloat16 layer holds exactly the rounded float32 sum; its W0 stays exact."""
    pipe = pipes.sd("euler", unet=nn.Module.to(pipes.tiny_unet(), torch.bfloat16))
    other = Case(pipe, folder, dtype=torch.bfloat16)
    kept = {n: p.detach().clone() for n, p in other.root.named_parameters()}
    pipe.scheduler.set_timesteps(10)
    with torch.no_grad(), other.bundle.attach(pipe, "fused"):
        addresses = [p.data_ptr() for p in other.root.parameters()]
        for i in (0, 9, 4):
            t = pipe.scheduler.timesteps[i]
            x, text = pipes.draw(1, 4, 8, 8, seed=0), pipes.draw(1, 5, 12, seed=1)
            other.root(x.bfloat16(), t, text.bfloat16())
            for s in other.specs:
                g = gates(s, i, 10)
                exact = kept[f"{s.module}.weight"].float() + sum(
                    a * d for a, d in zip(g, s.deltas, strict=True)
                )
                found: Any = other.root.get_submodule(s.module).weight
                # Sums in another order may round the other way where they meet a midpoint.
                assert float((found.float() - exact).abs().max()) <= 2**-8 * float(
                    exact.abs().max()
                )
        assert addresses == [p.data_ptr() for p in other.root.parameters()]
    assert all(torch.equal(kept[n], p) for n, p in other.root.named_parameters())


def test_only_a_changed_selection_touches_a_weight(case: Case) -> None:
    """A one-step switch: weights are written when the selection changes, not at each call."""
    case.pipe.scheduler = pipes.SCHEDULERS["ddim"]()
    switching: list[Spec] = [s for s in case.specs if "scores" in s.rule]
    with case.bundle.attach(case.pipe, "fused"):
        versions: list[list[int]] = []

        def after(_: Any, __: int, ___: Any, state: dict[str, Any]) -> dict[str, Any]:
            weights: list[Any] = [case.root.get_submodule(s.module).weight for s in switching]
            versions.append([w._version for w in weights])
            return state

        pipes.render(case.pipe, 20, callback_on_step_end=after)
    for s, column in zip(switching, zip(*versions, strict=True), strict=True):
        chosen = [gates(s, i, 20) for i in range(20)]
        switches = sum(a != b for a, b in pairwise(chosen))
        assert len(set(column)) == 1 + switches <= 2


def test_memory_is_both_loras_and_the_kept_weights(case: Case) -> None:
    layers = case.bundle.manifest.layers
    loras = sum(x.nbytes for layer in layers for i in (0, 1) for x in case.bundle.factors(layer, i))
    weights: list[Any] = [case.root.get_submodule(s.module).weight for s in case.specs]
    for keep in ("device", "cpu"):
        with case.bundle.attach(case.pipe, "fused", keep=keep) as replay:
            pipes.render(case.pipe, 10)
            held = replay.report()["memory"]
            assert held["kept"] == sum(w.nbytes for w in weights)
            assert 0 < held["loras"] <= loras  # what was never selected was never read
    with case.bundle.attach(case.pipe, "hooks") as replay:
        pipes.render(case.pipe, 10)
        assert replay.report()["memory"]["kept"] == 0
        assert 0 < replay.report()["memory"]["loras"] <= 2 * loras  # with the slots
    assert replay.report()["memory"] == {"loras": 0, "kept": 0}
    with pytest.raises(OverrideError, match="keep: there is no keep 'gpu'"):
        case.bundle.attach(case.pipe, keep="gpu")  # type: ignore[arg-type] - on purpose
