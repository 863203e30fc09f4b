"""LoRAs in the conditional half alone, beside what users do: batches, adapters, offload, PAG …"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lorabake.errors import AttachError, OverrideError
from lorabake.runtime import Bundle, read

from .. import bases
from ..runtime import pipes
from ..runtime.naive_bundle import LIVE, Spec, all_live, layer_of, write
from ..runtime.pipes import draw
from .adapters import OTHER, SAME, add
from .one_half import in_one_half
from .parts import flow, sd
from .parts.bundles import bake
from .parts.case import Case, tiny_vae
from .places import PLACES
from .reference import CLOSE, DIFFERENT, error
from .stage import Stage, bits, render

# diffusers' Euler hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

lib: Any = diffusers
CONDITIONAL: Any = {"half": "conditional"}
MODES: tuple[Any, ...] = ("auto", "hooks")
NEGATIVE: dict[str, Any] = {
    "negative_prompt_embeds": draw(1, 5, 12, seed=2),
    "negative_pooled_prompt_embeds": draw(1, 10, seed=4),
    "true_cfg_scale": 4.0,
}
KINDS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "one call": (lambda: pipes.sd(unet=pipes.one_level_unet()), "uc", {}),
    "two calls": (lambda: pipes.flux(1), "calls", NEGATIVE),
}
STEPS = 3


class Kind:
    """A pipeline of one of the two kinds, with a bundle, and what it should give."""

    def __init__(self, kind: str, folder: Path, seed: int) -> None:
        make, self.order, self.more = KINDS[kind]
        self.stage = Stage(make(), folder, seed)
        self.pipe, self.bundle = self.stage.pipe, self.stage.bundle

    def run(self, pipe: Any = None, **more: Any) -> Tensor:
        return render(pipe or self.pipe, STEPS, **(self.more | more))

    def expected(self, pipe: Any = None, **more: Any) -> Tensor:
        pipe = pipe or self.pipe
        with in_one_half(pipe, self.stage.specs, self.order):
            return self.run(pipe, **more)


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Kind:
    return Kind(request.param, tmp_path, seed)


def test_several_images(case: Kind) -> None:
    """Of several prompts, with as many negative ones; then one alone, in the same session."""
    two = {
        name: torch.cat([value, value + 1])
        for name, value in ({"negative_prompt_embeds": draw(1, 5, 12, seed=2)} | case.more).items()
        if isinstance(value, Tensor)
    }
    asked: list[dict[str, Any]] = [{"batch": 2, **two}, {}]
    if case.order == "uc":
        asked.append({"batch": 2, "num_images_per_prompt": 2, **two})
    expected = [case.expected(**more) for more in asked]
    with case.bundle.attach(case.pipe, **CONDITIONAL):
        for more, wanted in zip(asked, expected, strict=True):
            assert error(case.run(**more), wanted) <= CLOSE


def test_a_run_without_guidance_between_others(case: Kind) -> None:
    """It is told once, if no run had any before."""
    off: dict[str, Any] = {"guidance": 1.0} if case.order == "uc" else {"true_cfg_scale": 1.0}
    with case.bundle.attach(case.pipe):
        both, plain = case.run(), case.run(**off)
    expected = case.expected()
    assert error(both, expected) > DIFFERENT
    with case.bundle.attach(case.pipe, **CONDITIONAL) as replay:
        assert error(case.run(), expected) <= CLOSE
        assert error(case.run(**off), plain) <= CLOSE
        assert replay.report()["note"] == ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with case.bundle.attach(case.pipe, **CONDITIONAL) as replay:
            assert error(case.run(**off), plain) <= CLOSE
            case.run(**off)
            assert error(case.run(), expected) <= CLOSE
    (note,) = [str(x.message) for x in told if x.category is UserWarning]
    assert "ran without classifier-free guidance" in note
    assert replay.report()["note"] == note


@pytest.mark.parametrize("mode", MODES)
def test_broken_off_anywhere(case: Kind, mode: Any) -> None:
    """Between the halves too; what is saved then are the base weights."""
    root: nn.Module = case.stage.root
    case.run()
    before, clean = bits(root), {k: v.clone() for k, v in root.state_dict().items()}
    expected = case.expected()
    for stop in range(1, STEPS * (1 if case.order == "uc" else 2)):
        calls = iter(range(stop))

        def fail(*_: Any, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        with case.bundle.attach(case.pipe, mode, **CONDITIONAL):
            with root.register_forward_hook(fail), pytest.raises(KeyboardInterrupt):
                case.run()
            saved = root.state_dict()
            assert all(torch.equal(saved[name], weight) for name, weight in clean.items())
            if stop % 2:
                assert error(case.run(), expected) <= CLOSE
        assert bits(root) == before


@pytest.mark.parametrize("targets", [SAME, OTHER], ids=["on its layers", "on other layers"])
def test_beside_a_peft_adapter(case: Kind, targets: list[str]) -> None:
    """That one acts in both halves, as ever."""
    lone, twin = case.expected(), case.stage.twin()
    targets = targets if case.order == "uc" else (SAME[:1] if targets is SAME else ["x_embedder"])
    add("one", targets)(twin)
    specs = case.stage.specs
    for spec in specs:
        parent, _, name = spec.module.rpartition(".")
        wrapped = getattr(twin, case.stage.name).get_submodule(parent)
        if hasattr(getattr(wrapped, name), "base_layer"):
            spec.module += ".base_layer"
    expected = case.expected(twin)
    assert error(lone, expected) > DIFFERENT
    add("one", targets)(case.pipe)
    for mode in MODES:
        with case.bundle.attach(case.pipe, mode, **CONDITIONAL):
            assert error(case.run(), expected) <= CLOSE


def test_where_fused_cannot_be(tmp_path: Path, seed: int) -> None:
    one, two = (Kind(kind, tmp_path, seed) for kind in KINDS)
    with pytest.raises(AttachError, match=r"both halves of guidance come in one call.*auto"):
        one.bundle.attach(one.pipe, "fused", **CONDITIONAL)
    with pytest.raises(AttachError, match=r"the other half needs weights kept on the CPU"):
        two.bundle.attach(two.pipe, "fused", keep="cpu", **CONDITIONAL)
    with two.bundle.attach(two.pipe, keep="cpu", **CONDITIONAL) as replay:
        found = two.run()
    assert {row["mode"] for row in replay.report()["layers"]} == {"hooks"}
    assert error(found, two.expected()) <= CLOSE


@pytest.mark.parametrize("place", ["model offload", "sequential offload"])
def test_offloaded(case: Kind, place: str, tmp_path: Path) -> None:
    if case.order == "calls":
        case.pipe.unet, case.pipe.text_encoder = case.pipe.transformer, None
    expected = case.expected()
    PLACES[place](case.pipe, tmp_path / "weights")
    if case.order == "calls":
        del case.pipe.unet
    with case.bundle.attach(case.pipe, **CONDITIONAL):
        assert error(case.run(), expected) <= CLOSE
        assert error(case.run(), expected) <= CLOSE


def test_another_dtype_while_attached(case: Kind) -> None:
    """It may come while base weights are in place, between the halves."""
    twin = case.stage.twin()
    twin.to(torch.float64)
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in case.more.items()}
    if case.order == "uc":
        wide["negative_prompt_embeds"] = draw(1, 5, 12, seed=2).double()
    expected = case.expected(twin, **wide)
    root = case.stage.root
    kept = {name: weight.clone() for name, weight in root.state_dict().items()}
    with case.bundle.attach(case.pipe, **CONDITIONAL):
        case.run()
        case.pipe.to(torch.float64)
        assert error(case.run(**wide), expected) <= CLOSE
        case.pipe.to(torch.float32)
        case.run()
        case.pipe.to(torch.float64)
    for name, weight in root.state_dict().items():
        assert torch.equal(weight, kept[name].double()), name


def pag(seed: int) -> Case:
    parts = sd.parts(seed, unet=pipes.tiny_unet(seed, mid_block_type="UNetMidBlock2DCrossAttn"))
    pipe = lib.StableDiffusionPAGPipeline(**parts, pag_applied_layers="mid")
    latents = draw(1, 4, 8, 8, seed=seed + 1)
    return Case(
        pipe, lambda: {"latents": latents.clone(), "pag_scale": 2.0, **sd.prompt(seed)}, ("unet",)
    )


def skip_layers(seed: int) -> Case:
    case = flow.sd3(seed)
    inputs = case.inputs
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0,
            "skip_layer_guidance_stop": 1.0}  # fmt: skip
    return Case(case.pipe, lambda: inputs() | skip)


def instructed(seed: int) -> Case:
    parts = sd.parts(seed, unet=pipes.tiny_unet(seed, in_channels=8), vae=tiny_vae(seed))
    pipe = lib.StableDiffusionInstructPix2PixPipeline(**parts)
    latents = draw(1, 4, 8, 8, seed=seed + 1)
    more = {"image": sd.picture(seed), "image_guidance_scale": 1.5}
    return Case(pipe, lambda: {"latents": latents.clone(), **more, **sd.prompt(seed)}, ("unet",))


OTHERS: dict[str, tuple[Callable[[int], Case], str, dict[str, Any]]] = {
    "perturbed attention": (pag, "ucp", {}),
    "perturbed attention off": (pag, "uc", {"pag_scale": 0.0}),
    "skipped layers": (skip_layers, "uc", {}),
    "of an image": (instructed, "ciu", {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_guidance(name: str, tmp_path: Path, seed: int) -> None:
    make, order, more = OTHERS[name]
    case = make(seed)
    bundle, specs = bake(case.pipe, case.denoisers, tmp_path, seed)
    with in_one_half(case.pipe, specs, order):
        expected = case.run(**more)
    with bundle.attach(case.pipe):
        assert error(case.run(**more), expected) > DIFFERENT
    with bundle.attach(case.pipe, **CONDITIONAL):
        assert error(case.run(**more), expected) <= CLOSE


def test_live_decisions_are_those_of_the_conditional_samples(case: Kind, tmp_path: Path) -> None:
    """As when each half had been computed alone, whichever way the pipeline goes."""
    name, root = case.stage.name, case.stage.root
    specs = all_live(name, root)
    bundle = read(write(tmp_path / "live.safetensors", specs, {name: root}, size=0.2, **LIVE))
    for scope in ("sample", "batch"):
        decided: list[Any] = []
        for half in ("both", "conditional"):
            with bundle.attach(case.pipe, scope=scope, half=half) as replay:  # type: ignore[arg-type] - a half
                render(case.pipe, 1, **case.more)
            decided.append([x["decisions"] for x in replay.report()["layers"] if x["decisions"]])
        both, one = decided
        for whole, mine in zip(both, one, strict=True):
            (calls,), (found,) = whole, mine
            assert [*map(len, found)] == [1]
            if scope == "sample":
                first = calls[0]
                assert len(calls) == (1 if case.order == "uc" else 2)
                assert found == [first[-1:]]  # the one after the unconditional, or alone


@pytest.mark.parametrize("mode", MODES)
def test_one_graph_for_both_halves(case: Kind, mode: Any) -> None:
    if case.order == "uc" and mode == "auto":
        return  # the same as hooks
    expected = case.expected()
    torch.compiler.reset()
    counter = CompileCounter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with case.bundle.attach(case.pipe, mode, **CONDITIONAL):
            compiled = torch.compile(case.stage.root, backend=counter, fullgraph=True)
            setattr(case.pipe, case.stage.name, compiled)
            for _ in range(2):
                assert error(case.run(), expected) <= CLOSE
        assert counter.frame_count == 1
    torch.compiler.reset()


def test_what_the_pipeline_must_say(tmp_path: Path, seed: int) -> None:
    case = Kind("two calls", tmp_path, seed)
    case.run()
    same = draw(1, 5, 12, seed=1)
    alone: dict[str, Any] = {"hidden_states": draw(1, 16, 4, seed=0)}
    alone["timestep"] = case.pipe.scheduler.timesteps[:1] / 1000
    with case.bundle.attach(case.pipe, **CONDITIONAL):
        with pytest.raises(AttachError, match=r"one tensor for prompt and negative prompt.*a copy"):
            case.run(prompt_embeds=same, negative_prompt_embeds=same)
        with pytest.raises(AttachError, match="called by nothing that says which half"):
            case.pipe.transformer(**alone)

    class Own(lib.FluxPipeline):
        def __call__(self, **inputs: Any) -> Any:
            return self.transformer(**inputs)

    own = Own(**case.pipe.components)
    message = "called by nothing that says which half"
    with case.bundle.attach(own, **CONDITIONAL), pytest.raises(AttachError, match=message):
        own(**alone)

    class Unknown:
        transformer, scheduler = case.pipe.transformer, case.pipe.scheduler

    with pytest.raises(AttachError, match=r"Unknown is not known to say .*half=\"both\""):
        case.bundle.attach(Unknown(), **CONDITIONAL)
    for wrong in ("cond", 1, ""):
        with pytest.raises(OverrideError, match="there is no half"):
            case.bundle.attach(case.pipe, half=wrong)  # type: ignore[arg-type] - it is wrong


def test_the_bundle_says_it_and_attach_overrides_it(case: Kind, tmp_path: Path, seed: int) -> None:
    name, root = case.stage.name, case.stage.root
    path = tmp_path / "one.safetensors"
    write(path, case.stage.specs, {name: root}, seed=seed + 1, half="conditional", format="1.3")
    bundle: Bundle = read(path)
    expected = case.expected()
    with case.bundle.attach(case.pipe):
        both = case.run()
    with bundle.attach(case.pipe) as replay:
        assert replay.report()["half"] == "conditional"
        assert error(case.run(), expected) <= CLOSE
    with bundle.attach(case.pipe, half="both") as replay:
        assert torch.equal(case.run(), both)
    assert replay.report()["half"] == "both"
    assert {row["mode"] for row in replay.report()["layers"]} == {"fused"}


TEXTS = {
    "sd15": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"],
    "sd3": ["text_encoder", "text_encoder_2"], "flux": ["text_encoder"],
}  # fmt: skip
QUERY = "text_model.encoder.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("family", TEXTS)
def test_the_negative_prompt_is_encoded_without(family: str, tmp_path: Path) -> None:
    pipe = pipes.quiet(bases.FAMILIES[family]())
    roots: dict[str, nn.Module] = {name: getattr(pipe, name) for name in TEXTS[family]}
    specs = [Spec(name, QUERY, (2, 3), {"gates": [1.0, 0.5]}) for name in roots]
    bundle = read(write(tmp_path / "b.safetensors", specs, roots, size=0.5))

    def run(**given: Any) -> Tensor:
        more: dict[str, Any] = {"true_cfg_scale": 4.0} if family == "flux" else {}
        more |= {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
        return pipe(**more, **given, generator=torch.Generator().manual_seed(0)).images

    prompts = {"prompt": "a dog", "negative_prompt": "a cat"}
    base, other = run(**prompts), encode(pipe, family)
    before = {name: bits(root) for name, root in roots.items()}
    layers = [layer_of(roots[spec.component], QUERY) for spec in specs]
    kept = [layer.weight.data for layer in layers]
    for layer, weight, spec in zip(layers, kept, specs, strict=True):
        layer.weight.data = weight + spec.deltas[0] + 0.5 * spec.deltas[1]
    mine = encode(pipe, family)
    for layer, weight in zip(layers, kept, strict=True):
        layer.weight.data = weight
    expected = run(**{name: (other if "negative" in name else mine)[name] for name in mine})
    assert error(base, expected) > DIFFERENT / 10
    assert error(run(**mine), expected) > DIFFERENT / 10
    for mode in MODES:
        with bundle.attach(pipe, mode, **CONDITIONAL):
            assert error(run(**prompts), expected) <= CLOSE
            with pytest.raises(AttachError, match="text_encoder was called by nothing that says"):
                pipe.text_encoder(torch.tensor([[0, 1]]))
        assert {name: bits(root) for name, root in roots.items()} == before


def encode(pipe: Any, family: str) -> dict[str, Tensor]:
    """Embeddings of both prompts, as the pipeline's call takes them."""
    if family == "flux":
        found: dict[str, Tensor] = {}
        for prefix, prompt in (("", "a dog"), ("negative_", "a cat")):
            embeds, pooled, _ = pipe.encode_prompt(prompt, None)
            found |= {f"{prefix}prompt_embeds": embeds, f"{prefix}pooled_prompt_embeds": pooled}
        return found
    names = ["prompt_embeds", "negative_prompt_embeds"]
    if family == "sd15":
        return dict(zip(names, pipe.encode_prompt("a dog", "cpu", 1, True, "a cat"), strict=True))
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    more: dict[str, Any] = {"prompt_3": None} if family == "sd3" else {}
    given = pipe.encode_prompt(prompt="a dog", prompt_2=None, negative_prompt="a cat", **more)
    return dict(zip(names, given, strict=True))
