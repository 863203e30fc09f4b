"""Recording against dense weights, torch's own divergences and counts by hand."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL.Image import Image

import lorabake
from lorabake import bundle
from lorabake.bundle.rewrite import rewrite
from lorabake.errors import AttachError, BundleError, LorabakeError, OutputError
from lorabake.recording import record
from lorabake.runtime.guidance import Guidance, Reference
from lorabake.runtime.plan import Constant, Table

from . import bases, tiny
from .oracle import Dense, sha256, write_lora
from .runtime.live_oracle import TIE, Naive, Run, attached
from .runtime.naive_bundle import Spec

PROMPTS = ("a sbu dog", "zebra in szn")
SEEDS, FIRST, STEPS = 2, 5, 3
KEYS = [(prompt, FIRST + i) for prompt in PROMPTS for i in range(SEEDS)]
BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SHORT: dict[str, Any] = {"prompts": "a dog", "seeds": 1, "steps": 1}
OWN = (f"{BLOCK}.attn1.to_v", f"{BLOCK}.attn2.to_v")
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.out_proj"


class World:
    """A model, two LoRAs and the live bundle of them, and what the oracle makes of them."""

    def __init__(self, folder: Path) -> None:
        self.model = bases.save("sd15", folder / "model")
        self.live = folder / "live.safetensors"
        shapes = tiny.shapes(bases.sd15())
        wanted = ("attn1.to_q", "attn2.to_k", "ff.net.2", "conv1", "conv_shortcut")
        shared = {n: s for n, s in shapes.items() if n.startswith("unet.") and n.endswith(wanted)}
        paths = [folder / f"{role}.safetensors" for role in ("content", "style")]
        self.loras: list[Dense] = [
            write_lora(path, {n: shapes[n] for n in (*shared, own, TEXT)}, "peft", i, keep=1.0)
            for i, (path, own) in enumerate(zip(paths, OWN, strict=True))
        ]
        lorabake.make(paths[0], paths[1], self.live, method="dynamic", guide="off")
        self.shared = sorted(shared)
        self.runs: list[Run] = []
        self.images: list[Image] = []
        self.pipe = self.loaded()
        pipe = self.pipe
        specs = [
            Spec("unet", n[5:], (1, 1), {"live": True}, deltas=self.deltas(n)) for n in self.shared
        ]
        for prompt, seed in KEYS:
            naive = Naive(2)
            naive.ties = {spec.module: [[0, 0]] * STEPS for spec in specs}
            with attached({"unet": pipe.unet}, specs, naive) as run:
                self.images.append(paint(pipe, prompt, seed))
            self.runs.append(run)

    def deltas(self, name: str) -> list[torch.Tensor]:
        return [lora.delta[name].float() for lora in self.loras]

    def loaded(self) -> Any:
        """The model with what is always applied in its weights."""
        pipe: Any = StableDiffusionPipeline.from_pretrained(self.model, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        for lora in self.loras:
            for name in lora.delta.keys() - set(self.shared):
                component, _, module = name.partition(".")
                path = module.removeprefix("text_model.")
                getattr(pipe, component).get_submodule(path).weight.data += lora.delta[name].float()
        return pipe

    def by_hand(self, gates: dict[str, list[tuple[int, int]]]) -> list[Image]:
        """Every run with weights set before each step."""
        modules = [self.pipe.unet.get_submodule(name[5:]) for name in self.shared]
        base = [module.weight.data.clone() for module in modules]
        steps = iter([*range(STEPS)] * len(KEYS))

        def put(*_: Any) -> None:
            i = next(steps)
            for name, module, W0 in zip(self.shared, modules, base, strict=True):
                c, s = self.deltas(name)
                module.weight.data = W0 + gates[name][i][0] * c + gates[name][i][1] * s

        handle = self.pipe.unet.register_forward_pre_hook(put)
        found = [paint(self.pipe, *key) for key in KEYS]
        handle.remove()
        for module, W0 in zip(modules, base, strict=True):
            module.weight.data = W0
        return found

    def majority(self, bins: int) -> dict[str, tuple[int, ...]]:
        """By layer and bin, of what the oracle chose; a tie is content."""
        votes = {n: [self.cast(n, bins, b) for b in range(bins)] for n in self.shared}
        return {n: tuple(int(2 * sum(v) > len(v)) for v in row) for n, row in votes.items()}

    def cast(self, name: str, bins: int, b: int) -> list[int]:
        return [
            choice
            for run in self.runs
            for i, call in enumerate(run[name[5:]])
            for choice, _ in call
            if i * bins // STEPS == b
        ]


def paint(pipe: Any, prompt: str, seed: int) -> Image:
    generator = torch.Generator().manual_seed(seed)
    return pipe(
        prompt, width=16, height=16, num_inference_steps=STEPS, guidance_scale=4.0,
        generator=generator,
    ).images[0]  # fmt: skip


def far(images: list[Image], others: list[Image]) -> list[float]:
    """Mean absolute difference of each pair."""
    pairs = zip(images, others, strict=True)
    return [float(np.abs(np.array(a).astype(float) - np.array(b)).mean()) for a, b in pairs]


def make(world: World, output: Any, **edit: Any) -> Any:
    given: dict[str, Any] = {
        "bundle_path": world.live, "output": output, "base": world.model, "prompts": PROMPTS,
        "seeds": SEEDS, "first_seed": FIRST, "steps": STEPS, "guidance_scale": 4.0, "width": 16,
        "height": 16,
    }  # fmt: skip
    return record(**(given | edit))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("recording"))


@pytest.fixture(scope="module")
def found(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    output = tmp_path_factory.mktemp("recorded") / "static.safetensors"
    return make(world, output), output


def test_the_majority_of_what_the_oracle_chose(
    world: World, found: tuple[Any, Path], tmp_path: Path
) -> None:
    margins = [abs(m) for run in world.runs for calls in run.values() for c in calls for _, m in c]
    assert min(margins) > TIE
    few = make(world, tmp_path / "few", bins=2)
    for bins, path in ((STEPS, found[1]), (2, tmp_path / "few")):
        wanted = world.majority(bins)
        rules = {str(x): x.rule for x in lorabake.load(path).manifest.layers}
        assert {n: r.select for n, r in rules.items() if isinstance(r, Table)} == wanted
        assert all(rules[n] == Constant((1.0, 1.0)) for n in (*OWN, TEXT))
        assert rules.keys() == {*world.shared, *OWN, TEXT}
        cells = [choice for row in wanted.values() for choice in row]
        assert 0.1 < sum(cells) / len(cells) < 0.9
        report = found[0] if bins == STEPS else few
        assert report.style == pytest.approx(sum(cells) / len(cells))
        votes = [
            (choice, wanted[n][b])
            for n in world.shared
            for b in range(bins)
            for choice in world.cast(n, bins, b)
        ]
        assert report.followed == pytest.approx(np.mean([a == b for a, b in votes]))
        assert report.followed < 1
        assert (report.params["bins"], report.unseen) == (bins, 0)


def test_agreement_of_the_oracles_runs(world: World, found: tuple[Any, Path]) -> None:
    """Every decision is made in all runs, so the mean of shares is the share of all pairs."""
    shares: dict[str, list[bool]] = defaultdict(list)
    flat = [
        [choice for n in world.shared for call in run[n[5:]] for choice, _ in call]
        for run in world.runs
    ]
    for (i, a), (j, b) in combinations(enumerate(flat), 2):
        equal = [x == y for x, y in zip(a, b, strict=True)]
        shares["runs"] += equal
        shares["within" if KEYS[i][0] == KEYS[j][0] else "between"] += equal
    for choices in flat:
        shares["halves"] += [a == b for a, b in zip(choices[::2], choices[1::2], strict=True)]
    wanted = {name: np.mean(values) for name, values in shares.items()}
    assert vars(found[0].agreement) == pytest.approx(wanted)
    assert wanted["within"] != wanted["between"]
    assert max(wanted.values()) < 1


def test_images_of_weights_set_by_hand(world: World, found: tuple[Any, Path]) -> None:
    gates = {n: [((1, 0), (0, 1))[c] for c in row] for n, row in world.majority(STEPS).items()}
    static = world.by_hand(gates)
    direct = world.by_hand({n: [(1, 1)] * STEPS for n in world.shared})
    pipe: Any = StableDiffusionPipeline.from_pretrained(world.model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    with lorabake.load(found[1]).attach(pipe) as replay:
        images = [paint(pipe, *key) for key in KEYS]
    assert {x["mode"] for x in replay.report()["layers"]} == {"fused"}
    assert max(far(images, static)) < 0.02
    assert min(far(images, direct)) > 1
    assert np.mean(far(images, world.images)) > 0.3
    for figure, others in ((found[0].difference, static), (found[0].direct, direct)):
        each = far(world.images, others)
        assert figure.mean == pytest.approx(np.mean(each), abs=0.02)
        assert figure.error == pytest.approx(np.std(each, ddof=1) / 2, abs=0.02)


def test_the_file(world: World, found: tuple[Any, Path]) -> None:
    report, path = found
    raws = [p.read_bytes() for p in (world.live, path)]
    headers = [json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]) for raw in raws]
    texts = [header.pop("__metadata__") for header in headers]
    assert headers[0] == headers[1]
    sizes = [8 + int.from_bytes(raw[:8], "little") for raw in raws]
    assert raws[0][sizes[0] :] == raws[1][sizes[1] :]
    live, static = (json.loads(text["lorabake"]) for text in texts)
    assert static["format"] == "1.0"
    assert static.keys().isdisjoint(("live", "guidance"))
    assert static["digest"] == live["digest"] == report.digest
    assert static["sources"] == live["sources"]
    assert static["method"] == "dynamic-recorded"
    assert static["params"] == report.params == {
        "criterion": "kl", "temperature": 1.0, "scope": "sample", "tokens": 0,
        "prompts": [*PROMPTS], "seeds": SEEDS, "first_seed": FIRST, "steps": STEPS, "bins": STEPS,
        "guidance_scale": 4.0, "width": 16, "height": 16, "base": "model",
    }  # fmt: skip
    texts[0]["modelspec.title"] = "content + style (dynamic-recorded)"
    texts[0]["lorabake"] = texts[1]["lorabake"]
    assert texts[0] == texts[1]
    sources = [world.live.with_name(f"{role}.safetensors") for role in ("content", "style")]
    assert bundle.verify(path, (sources[0], sources[1])).compared > 2 * len(world.shared)


def test_one_run_has_nothing_to_agree_with(world: World, tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}
    report = make(
        world, tmp_path / "b", **SHORT, guidance_scale=1,
        progress=lambda stage, *n: stages.update({stage: n}),
    )  # fmt: skip
    assert vars(report.agreement) == dict.fromkeys(("runs", "within", "between", "halves"))
    assert (report.followed, report.difference.error) == (1.0, None)
    assert "there is one run only" in str(report)
    assert stages == dict.fromkeys(("recording", "comparing", "direct merge"), (1, 1))


def test_guidance_is_left_out_and_that_is_told(world: World, tmp_path: Path) -> None:
    source = tmp_path / "guided"
    reference = Reference((1.0, 0.0), (0.0, 1.0), None, None)
    manifest = lorabake.load(world.live).manifest
    guidance = Guidance((reference, reference), "clip", "dino")
    with source.open("xb") as file:
        rewrite(file, world.live, replace(manifest, guidance=guidance))
    report = make(world, tmp_path / "a", bundle_path=source, **SHORT)
    assert report.warnings == (
        "the latents were not guided meanwhile, and the new bundle has no guidance",
    )
    assert make(world, tmp_path / "b", **SHORT).warnings == ()
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_one_half_of_guidance_is_recorded_and_kept(world: World, tmp_path: Path) -> None:
    """One decision of each image in each call: that of the conditional half."""
    source = tmp_path / "one"
    with source.open("xb") as file:
        manifest = replace(lorabake.load(world.live).manifest, half="conditional")
        rewrite(file, world.live, manifest)
    report = make(world, tmp_path / "a", bundle_path=source, **SHORT)
    assert report.agreement.halves is None
    assert report.followed == 1.0
    assert lorabake.load(tmp_path / "a").manifest.half == "conditional"


def test_a_layer_that_no_run_computes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is skipped; and a denoiser of which all live layers are."""
    names = [n for n in world.shared if "down_blocks.0.attentions" in n]
    with monkeypatch.context() as patch:
        patch.setattr(Transformer2DModel, "forward", lambda self, x, **_: (x,))
        report = make(world, tmp_path / "b", **SHORT)
    skipped = [n for n in world.shared if "attentions" in n]
    assert report.unseen == len(skipped) >= len(names) > 0
    assert report.warnings == (
        f"layers that no run saw choose are content throughout: {len(skipped)} of them",
    )
    rules = {str(x): x.rule for x in lorabake.load(tmp_path / "b").manifest.layers}
    assert {rules[n] for n in skipped} == {Table((0,))}
    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", lambda self, sample, t, **_: (sample,))
        with pytest.raises(AttachError, match="none of the layers that choose live has chosen"):
            make(world, tmp_path / "c", **SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompts": ()}, "^prompts: there are none"),
        ({"prompts": ("a", " ")}, "^prompts: one is empty"),
        ({"prompts": ("a", "a")}, "^prompts: one is given twice. Raise the number of seeds"),
        ({"prompts": "a \udcff"}, "^prompts: one is not UTF-8 text"),
        ({"prompts": (3,)}, "^prompts: 3 is not a text"),
        ({"seeds": 0}, "^seeds: 0 is not a whole number from 1"),
        ({"first_seed": 2**63 - 1}, "^first_seed: "),
        ({"steps": 0}, "^steps: 0 is not"),
        ({"steps": 1001}, "^steps: 1001 is more than the scheduler's"),
        ({"bins": 0}, "^bins: 0 is not a whole number from 1 to 3"),
        ({"bins": 4}, "^bins: 4 is not a whole number from 1 to 3"),
        ({"guidance_scale": float("nan")}, "^guidance_scale: "),
        ({"width": None}, "one of width and height is missing"),
        ({"device": "nowhere"}, "nowhere"),
        ({"base": "no/where/at all"}, "no such folder"),
        ({"bundle_path": "nowhere"}, "^nowhere: "),
    ],
)
def test_bad_input(change: dict[str, Any], text: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(LorabakeError, match=text) as error:
        make(world, tmp_path / "b", **change)
    assert error.value.exit_code == 2
    assert not [*tmp_path.iterdir()]


def test_bundles_that_cannot_be_recorded(
    world: World, found: tuple[Any, Path], tmp_path: Path
) -> None:
    nowhere: dict[str, Any] = {"base": "nobody/nowhere", "output": tmp_path / "b"}
    with pytest.raises(BundleError, match="dynamic-recorded chooses nothing live, so there is"):
        make(world, bundle_path=found[1], **nowhere)
    with pytest.raises(OutputError, match="one of the inputs"):
        make(world, world.live, force=True)
    with pytest.raises(OutputError, match="exists already"):
        make(world, found[1])
    raw = bytearray(world.live.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    with pytest.raises(BundleError, match="digest differs"):
        make(world, bundle_path=tmp_path / "damaged", **nowhere)


def test_interrupted_it_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "direct merge" and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(world, tmp_path / "b", force=True, progress=stop, **SHORT)
    assert (tmp_path / "b").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
