"""The ComfyUI node against dense weights, set by hand for every call of the model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorabake.runtime
from lorabake.errors import AttachError, BundleError, OverrideError

from ..runtime.naive_bundle import LIVE, Spec, gates, write
from . import comfy

FOLDER = Path(__file__).parents[2] / "examples" / "comfyui"
RULES: list[dict[str, Any]] = [
    {"scores": [0.8, 1.0]},
    {"select": "01101"},
    {"scores": [1.2, 1.0]},
    {"gates": [1.0, 0.5]},
    {"scores": [1.0, 1.0]},
    {"select": "10"},
]
ZIP, ALONE = {"gates": [1.0, 1.0]}, {"gates": [0.0, 1.0]}
ONE = (1.0, 1.0)
SIGMAS = [14.0, 9.0, 5.0, 3.0, 1.5, 0.5, 0.0]


class World:
    """A model, a bundle for it, and the node."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, node: Path = FOLDER) -> None:
        self.folder = folder / "loras"
        self.folder.mkdir()
        self.model, self.text = comfy.Patcher(comfy.model()), comfy.Patcher(comfy.text_model())
        self.roots = {"transformer": comfy.diffusers_view(), "text_encoder": nn.Module()}
        self.roots["text_encoder"].layers = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
        keys = [*comfy.DENOISER.values(), *comfy.TEXT.values()]
        names = {f"layer{i}": key for i, key in enumerate(keys)}
        inside = {stem: key for stem, key in names.items() if key in comfy.DENOISER.values()}
        texts = {stem: key for stem, key in names.items() if stem not in inside}
        comfy.install(monkeypatch, self.folder, inside, texts)
        package = comfy.custom_node(monkeypatch, node)
        self.node = package.NODE_CLASS_MAPPINGS["LorabakeLoadBundle"]()
        self.x = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def bundle(
        self, rules: Sequence[dict[str, Any]] = RULES, texts: bool = False, **edit: Any
    ) -> list[Spec]:
        ranks = [(2, 3), (3, 1), (2, 2)]
        specs = [
            Spec("transformer", name, (0, 3) if rule == ALONE else ranks[i % 3], rule, rule == ZIP)
            for i, (name, rule) in enumerate(zip(comfy.DENOISER, rules, strict=True))
        ]
        if texts:
            rule = {"gates": [0.5, 1.0]}
            specs += [Spec("text_encoder", name, (2, 1), rule) for name in comfy.TEXT]
        write(self.folder / "b.safetensors", specs, self.roots, size=0.3, **edit)
        return specs

    def outputs(
        self, model: comfy.Patcher, sigmas: Sequence[float], calls: Sequence[float] | None = None
    ) -> list[Tensor]:
        """What a sampler gets, called at these sigmas (at all but the last if not given)."""
        options = {"sample_sigmas": torch.tensor(sigmas)}
        return [model.apply_model(self.x, sigma, options) for sigma in calls or sigmas[:-1]]

    def expected(
        self, count: int, positions: Iterable[int], *applied: tuple[list[Spec], tuple[float, float]]
    ) -> list[Tensor]:
        """The same from weights that hold the chosen ΔW of these bundles, with their strengths."""
        denoiser = self.model.model.diffusion_model
        outputs: list[Tensor] = []
        for position in positions:
            weights = {name: w.clone() for name, w in self.model.model.state_dict().items()}
            for specs, strengths in applied:
                for key, spec in zip(comfy.DENOISER.values(), specs, strict=False):
                    chosen = gates(spec, position, count)
                    for delta, gate, strength in zip(spec.deltas, chosen, strengths, strict=True):
                        comfy.add(weights, key, gate * strength * delta)
            inner = {name.partition(".")[2]: weight for name, weight in weights.items()}
            outputs.append(torch.func.functional_call(denoiser, inner, (self.x,)))
        return outputs


def hooks(model: comfy.Patcher) -> list[str]:
    """Layers that still have one."""
    found = model.model.named_modules()
    return [name for name, module in found if module._forward_hooks]  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Equal up to the rounding of the oracle's ΔW, which are float32."""
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 2e-5 * float(other.abs().max())


@pytest.mark.parametrize("steps", [1, 4, 6])
@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, -1.3), (0.0, 1.0)])
def test_every_step_has_the_plans_weights(
    world: World, steps: int, strengths: tuple[float, float]
) -> None:
    specs = world.bundle()
    before = {name: w.clone() for name, w in world.model.model.state_dict().items()}
    model, clip = world.node.load(world.model, "b.safetensors", *strengths)
    found = world.outputs(model, SIGMAS[-steps - 1 :])
    same(found, world.expected(steps, range(steps), (specs, strengths)))
    # Nothing is left, the model that was given is as it was, and the plan had something to say.
    assert all(torch.equal(w, before[name]) for name, w in world.model.model.state_dict().items())
    assert not hooks(world.model)
    assert clip is None
    assert not world.model.patches
    assert not world.model.wrappers
    assert steps < 4 or max(float((a - found[0]).abs().max()) for a in found) > 1e-2


def test_linear_layers_of_its_own(world: World) -> None:
    denoiser = world.model.model.diffusion_model
    for name in ("qkv", "ada", "out"):
        setattr(denoiser, name, comfy.OwnLinear(getattr(denoiser, name)))
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), (specs, ONE)))


def test_the_order_of_calls_does_not_matter(world: World) -> None:
    """Between two sigmas, at one a second time, a little beside one, above all, and at the end."""
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    calls = {14.0: 0, 11.0: 0, 9.0: 1, 5.0: 2, 5.0001: 2, 4.0: 2, 3.0: 3, 0.7: 4, 0.1: 5, 20.0: 0}
    order = [*calls, 3.0, 3.0, 14.0]
    positions = [calls[sigma] for sigma in order]
    same(world.outputs(model, SIGMAS, order), world.expected(6, positions, (specs, ONE)))


def test_repeated_sigmas_have_the_first_ones_progress(world: World) -> None:
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    found = world.outputs(model, [14.0, 9.0, 9.0, 9.0, 1.0, 0.0])
    same(found, world.expected(5, [0, 1, 1, 1, 4], (specs, ONE)))


def test_part_of_a_run_has_its_part_of_the_plan(world: World) -> None:
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors", start=0.4)
    same(world.outputs(model, SIGMAS), world.expected(10, range(4, 10), (specs, ONE)))
    model, _ = world.node.load(world.model, "b.safetensors", start=0.25, end=0.75)
    same(world.outputs(model, SIGMAS[2:]), world.expected(8, range(2, 6), (specs, ONE)))


def test_two_bundles_add_up(world: World) -> None:
    """The second one's node gets what the first one's returned."""
    first = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors", 1.0, 0.5)
    second = world.bundle(RULES[::-1], seed=7)
    both, _ = world.node.load(model, "b.safetensors")
    one, other = (first, (1.0, 0.5)), (second, (1.0, 1.0))
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), one))
    same(world.outputs(both, SIGMAS), world.expected(6, range(6), one, other))


def test_an_interrupted_sampling_leaves_nothing(world: World) -> None:
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    world.model.model.diffusion_model.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        world.outputs(model, SIGMAS)
    assert not hooks(world.model)
    world.model.model.diffusion_model.fails = False
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), (specs, ONE)))


def test_memory_is_freed_when_comfyui_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    reads: list[str] = []
    original = lorabake.runtime.Bundle.factors

    def counted(self: Any, layer: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        reads.append(layer.module)
        return original(self, layer, *args, **kwargs)

    monkeypatch.setattr(lorabake.runtime.Bundle, "factors", counted)
    choosing = [spec.module for spec in specs if "gates" not in spec.rule]
    world.outputs(model, SIGMAS, [14.0, 14.0])
    assert reads == choosing
    (replay,) = model.wrappers["apply_model"]
    assert replay.to("cpu") is replay
    same(world.outputs(model, SIGMAS, [14.0]), world.expected(6, [0], (specs, ONE)))
    assert reads == choosing * 2


def test_what_never_changes_is_an_ordinary_patch(world: World) -> None:
    """ZipLoRA, where the coefficients are in the factors; and a layer of one LoRA alone."""
    specs = world.bundle([ZIP] * 5 + [ALONE])
    model, _ = world.node.load(world.model, "b.safetensors", 0.9, 0.4)
    assert not model.wrappers
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), (specs, (0.9, 0.4))))


@pytest.mark.parametrize("rules", [RULES, [ZIP] * 5 + [ALONE]], ids=["plan", "constant"])
def test_in_one_half_it_is_the_positive_conditioning(
    world: World, rules: Sequence[dict[str, Any]]
) -> None:
    """Whatever the sampler puts together into a batch, and in which order."""
    specs = world.bundle(rules, half="conditional", format="1.3")
    strengths = (0.9, 1.2)
    with_loras = world.expected(6, range(6), (specs, strengths))
    without = world.expected(6, range(6))
    x, chunks = world.x, {0: with_loras, 1: without}
    model, _ = world.node.load(world.model, "b.safetensors", *strengths)
    both, _ = world.node.load(world.model, "b.safetensors", *strengths, half="both")
    for kinds in ([0, 1], [1, 0], [0], [1], [1, 1, 0, 0], [0, 1, 0]):
        options = {"sample_sigmas": torch.tensor(SIGMAS), "cond_or_uncond": kinds}
        batch = torch.cat([x] * len(kinds))
        found = [model.apply_model(batch, sigma, options) for sigma in SIGMAS[:-1]]
        same(found, [torch.cat([chunks[k][i] for k in kinds]) for i in range(6)])
        found = [both.apply_model(batch, sigma, options) for sigma in SIGMAS[:-1]]
        same(found, [torch.cat([y] * len(kinds)) for y in with_loras])
    assert not hooks(world.model)
    for kinds in ([0, 1, 2], [], None):
        with pytest.raises(AttachError, match=r"which conditioning is positive.*half to both"):
            model.apply_model(x, 1.0, {"sample_sigmas": torch.ones(2), "cond_or_uncond": kinds})


def test_text_encoders_follow_their_strengths(world: World) -> None:
    specs = world.bundle(texts=True)
    _, clip = world.node.load(world.model, "b.safetensors", 0.8, 1.1, clip=world.text)
    weights = {name: w.clone() for name, w in world.text.model.state_dict().items()}
    for key, spec in zip(comfy.TEXT.values(), specs[-2:], strict=True):
        weights[key] += 0.5 * 0.8 * spec.deltas[0] + 1.1 * spec.deltas[1]
    for name, weight in clip.weights().items():
        torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=1e-5)
    assert not world.text.patches
    model, nothing = world.node.load(world.model, "b.safetensors")
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), (specs, ONE)))
    assert nothing is None


def test_a_copy_of_the_runtime_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page beside the node says: this folder, with lorabake/runtime in it as `runtime`."""
    node, skip = tmp_path / "node", shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER, node, ignore=skip)
    shutil.copytree(Path(lorabake.runtime.__file__).parent, node / "runtime", ignore=skip)
    for name in [name for name in sys.modules if name.split(".")[0] == "lorabake"]:
        monkeypatch.setitem(sys.modules, name, None)
    world = World(tmp_path, monkeypatch, node)
    specs = world.bundle()
    model, _ = world.node.load(world.model, "b.safetensors")
    same(world.outputs(model, SIGMAS), world.expected(6, range(6), (specs, ONE)))


def test_comfyui_can_ask_for_its_inputs(world: World) -> None:
    world.bundle()
    asked = world.node.INPUT_TYPES()
    assert asked["required"]["bundle"] == (["b.safetensors"],)
    given = {name: kind[0] for group in asked.values() for name, kind in group.items()}
    defaults = {
        name: more[0]["default"]
        for group in asked.values()
        for name, (_, *more) in group.items()
        if more and "default" in more[0]
    }
    values = {"model": world.model, "clip": None, "bundle": "b.safetensors"} | defaults
    assert given.keys() == values.keys()
    found = getattr(world.node, world.node.FUNCTION)(**values)
    assert len(found) == len(world.node.RETURN_TYPES)


def test_what_cannot_be_replayed_is_refused(world: World) -> None:
    live: list[dict[str, Any]] = [{"live": True}] * 6
    world.bundle(live, **LIVE)
    with pytest.raises(BundleError, match=r"choose live.*lorabake record"):
        world.node.load(world.model, "b.safetensors")
    world.bundle()
    with pytest.raises(OverrideError, match="not before end"):
        world.node.load(world.model, "b.safetensors", start=0.5, end=0.5)
    model, _ = world.node.load(world.model, "b.safetensors")
    with pytest.raises(AttachError, match="progress is unknown"):
        model.apply_model(world.x, 1.0, {})
    other = comfy.Patcher(comfy.model())
    other.model.diffusion_model.qkv = nn.Linear(8, 20)
    del other.model.diffusion_model.out
    with pytest.raises(AttachError, match=r"2 of 6 layers .* do not fit .*attn.to_v.*out"):
        world.node.load(other, "b.safetensors")
    assert not other.patches
