"""Dynamic fusion from files to a file: who decides what, and the references' embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import lorabake
from lorabake.cli import cli
from lorabake.errors import LorabakeError, MemoryLackError, PairError, RecipeError, UserError
from lorabake.pipelines import encoders as seers
from lorabake.runtime.guidance import Guidance
from lorabake.runtime.plan import Constant, Live
from lorabake.runtime.selection import Selection

from .. import bases, encoders
from ..oracle import Dense, write_lora

pytestmark = pytest.mark.usefixtures("loras")

PROMPTS = {"content_prompt": "a sbu dog", "style_prompt": "a cat in szn style"}
QUICK: dict[str, Any] = {"reference_steps": 2, "reference_guidance": 1.5, "resolution": 16}
ROLES = ("content", "style")
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SHARED = {f"{ATTENTION}.attn1.to_q": (8, 8), f"{ATTENTION}.attn2.to_k": (8, 24)}
TEXT = {"text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (24, 24)}
OWN = ({f"{ATTENTION}.attn1.to_v": (8, 8)}, {f"{ATTENTION}.attn2.to_v": (8, 24)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two LoRAs that share some layers, two encoders and two images."""
    folder = tmp_path_factory.mktemp("dynamic")
    bases.save("sd15", folder / "model")
    for role in ("clip", "dino"):
        encoders.save(role, folder / role)
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    for i, shape in enumerate([(16, 16, 3), (24, 31, 3)]):
        pixels = noise.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def loras(folder: Path) -> tuple[Dense, Dense]:
    """What the LoRAs add to the weights, by layer."""
    content, style = (
        write_lora(folder / f"{role}.safetensors", SHARED | TEXT | OWN[i], "peft", i, keep=1.0)
        for i, role in enumerate(ROLES)
    )
    return content, style


def make(folder: Path, output: Path, **params: Any) -> lorabake.Report:
    given: dict[str, Any] = {"method": "dynamic", **seeing(folder), **params}
    content, style = (folder / f"{role}.safetensors" for role in ROLES)
    return lorabake.make(content, style, output, **given)


def seeing(folder: Path) -> dict[str, str]:
    return {role: str(folder / role) for role in ("clip", "dino")}


def guided(folder: Path, output: Path, **params: Any) -> Guidance:
    given: dict[str, Any] = {"base": folder / "model", **PROMPTS, **QUICK, **params}
    make(folder, output, **given)
    found = lorabake.load(output).manifest.guidance
    assert found is not None
    return found


def painted(folder: Path, prompt: str, lora: Dense, seed: int) -> Tensor:
    """By the base model with W0 + ΔW of one LoRA as its weights."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder / "model", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    for name, delta in lora.delta.items():
        component, _, module = name.partition(".")
        part = getattr(pipe, component)
        path = module if component == "unet" else module.removeprefix("text_model.")
        part.get_submodule(path).weight.data += delta.float()
    return pipe(
        prompt, height=16, width=16, num_inference_steps=2, guidance_scale=1.5,
        generator=torch.Generator().manual_seed(seed), output_type="pt",
    ).images  # fmt: skip


def embedded(role: str, picture: Tensor) -> Tensor:
    """Of a 16 × 16 picture in [0, 1], of length 1."""
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in encoders.STATISTICS[role])
    model = {"clip": encoders.clip, "dino": encoders.dino}[role]()
    with torch.no_grad():
        found = model(pixel_values=(picture - mean) / std)
    found = found.image_embeds if role == "clip" else found.last_hidden_state[:, 0]
    return found[0] / found[0].norm()


def near(found: Sequence[float], wanted: Tensor, atol: float = 1e-5) -> None:
    assert float(torch.tensor(found).norm()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(torch.tensor(found), wanted, atol=atol, rtol=0)


def test_shared_layers_of_the_denoiser_choose_live(folder: Path, tmp_path: Path) -> None:
    """Without references, neither base nor encoders are needed."""
    report = make(
        folder, tmp_path / "b", clip="nobody/nothing", dino="nowhere", criterion="js",
        temperature=2, scope="batch", tokens=9,
    )  # fmt: skip
    manifest = lorabake.load(tmp_path / "b").manifest
    rules = {str(layer): layer.rule for layer in manifest.layers}
    assert {name for name, rule in rules.items() if rule == Live()} == SHARED.keys()
    others = rules.keys() - SHARED
    assert others == TEXT.keys() | OWN[0].keys() | OWN[1].keys()
    assert all(rules[name] == Constant((1.0, 1.0)) for name in others)
    assert manifest.selection == Selection("js", 2.0, "batch", 9)
    assert manifest.guidance is None
    assert report.notes == {"layers_live": 2, "layers_summed": 3, "references": 0}
    params = report.params
    assert (params["clip"], params["dino"]) == ("nobody/nothing", "nowhere")


def test_each_reference_is_what_its_lora_alone_paints(
    folder: Path, loras: tuple[Dense, Dense], tmp_path: Path
) -> None:
    found = guided(
        folder, tmp_path / "b", seed=5, m=3, every=2, through="latents", w_clip_content=0.5,
        w_clip_style=2, w_dino_style=0,
    )  # fmt: skip
    assert (found.clip, found.dino) == ("clip", "dino")
    assert (found.m, found.every, found.through) == (3, 2, "latents")
    assert found.weights == (0.5, 2, 0)
    each = zip(PROMPTS.values(), loras, strict=True)
    pictures = [painted(folder, prompt, lora, 5) for prompt, lora in each]
    assert (pictures[0] - pictures[1]).abs().max() > 0.05
    for reference, prompt, picture in zip(
        found.references, PROMPTS.values(), pictures, strict=True
    ):
        assert (reference.prompt, reference.seed) == (prompt, 5)
        near(reference.clip, embedded("clip", picture))
        near(reference.dino, embedded("dino", picture))
    content, style = (torch.tensor(reference.dino) for reference in found.references)
    assert (content - style).abs().max() > 1e-3


def test_same_inputs_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        guided(folder, tmp_path / name, seed=seed)
    one, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert one == same
    assert one != other
    tensors = [load_file(tmp_path / name) for name in "ac"]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert str(folder).encode() not in one


def test_given_images_are_averaged_as_directions(
    folder: Path, loras: tuple[Dense, Dense], tmp_path: Path
) -> None:
    """A folder of two for the content; the style paints."""
    found = guided(folder, tmp_path / "b", content_images=str(folder / "images"), guide="on")
    views: dict[str, list[Tensor]] = {"clip": [], "dino": []}
    for i in (0, 1):
        image = Image.open(folder / "images" / f"{i}.png")
        # Bicubic to 16 and cut, in whole grey values.
        square: Any = CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size=16, do_normalize=False
        )(image, return_tensors="pt")
        for role, seen in views.items():
            seen.append(embedded(role, square["pixel_values"]))
    content, style = found.references
    for role, seen in views.items():
        near(getattr(content, role), functional.normalize((seen[0] + seen[1]) / 2, dim=0), 5e-3)
    assert (content.prompt, content.seed) == (None, None)
    assert (style.prompt, style.seed) == (PROMPTS["style_prompt"], 0)
    near(style.clip, embedded("clip", painted(folder, PROMPTS["style_prompt"], loras[1], 0)))


def test_images_of_both_need_no_base(folder: Path, tmp_path: Path) -> None:
    image = str(folder / "images" / "0.png")
    given = {f"{role}_images": image for role in ROLES}
    report = make(folder, tmp_path / "b", **given)
    manifest = lorabake.load(tmp_path / "b").manifest
    assert manifest.guidance is not None
    pixels = torch.from_numpy(np.array(Image.open(image), np.float32)).permute(2, 0, 1)[None] / 255
    for reference in manifest.guidance.references:
        near(reference.clip, embedded("clip", pixels))
    assert (report.params["content_images"], report.params["clip"]) == ("0.png", "clip")
    assert report.notes["references"] == 2


def test_guidance_without_selection(folder: Path, tmp_path: Path) -> None:
    images = {f"{role}_images": str(folder / "images") for role in ROLES}
    report = make(folder, tmp_path / "b", method=None, preset="dynamic-llr", **images)
    manifest = lorabake.load(tmp_path / "b").manifest
    assert manifest.selection is None
    assert manifest.guidance is not None
    assert {layer.rule for layer in manifest.layers} == {Constant((1.0, 1.0))}
    assert report.notes == {"layers_live": 0, "layers_summed": 5, "references": 2}
    with pytest.warns(UserWarning, match="a direct merge"):
        make(folder, tmp_path / "c", select=False)


@pytest.mark.parametrize("name", ["fls", "js", "cosine", "dot"])
def test_presets_without_guidance(name: str, folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path / "b", method=None, preset=f"dynamic-{name}", **PROMPTS)
    manifest = lorabake.load(tmp_path / "b").manifest
    assert manifest.selection == Selection("kl" if name == "fls" else name)  # pyright: ignore[reportArgumentType] - one of them
    assert manifest.guidance is None


def test_what_is_missing_for_guidance_is_told(folder: Path, tmp_path: Path) -> None:
    """By default as a warning, and only where some of it was given."""
    with pytest.warns(UserWarning, match="latents are not guided: the base model is missing"):
        make(folder, tmp_path / "a", **PROMPTS)
    with pytest.warns(UserWarning, match="not guided: the style prompt is missing"):
        make(folder, tmp_path / "b", base=folder / "model", content_prompt="a sbu dog")
    make(folder, tmp_path / "c", base=folder / "model")
    make(folder, tmp_path / "d", guide="off", **PROMPTS)
    for name in "abcd":
        assert lorabake.load(tmp_path / name).manifest.guidance is None


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"content_prompt": " "}, RecipeError, "content_prompt: .*--content-prompt.*guide=off"),
        ({"style_prompt": ""}, RecipeError, "style_prompt: .*--style-images"),
        ({"base": None}, RecipeError, "base: the base model is missing.*--base.*guide=off"),
        ({"clip": "nowhere"}, UserError, "^nowhere: no such folder"),
        ({"dino": "images"}, UserError, "^images: is not an image encoder"),
        ({"dino": "clip/config.json"}, UserError, "it is a file"),
        ({"style_images": "nowhere"}, UserError, "nowhere: no such folder or image"),
        ({"style_images": "clip/config.json"}, UserError, "cannot be used: config.json"),
        ({"resolution": 20}, UserError, "resolution: .*Give 16"),
        ({"select": "yes"}, RecipeError, "select: 'yes' is neither"),
        ({"criterion": "l2"}, RecipeError, "criterion: 'l2' .* kl, js, cosine, dot"),
        ({"temperature": 0}, RecipeError, "temperature: 0 is out of range"),
        ({"scope": "token"}, RecipeError, "scope: 'token' .* sample, batch"),
        ({"tokens": -1}, RecipeError, "tokens: -1 is not a whole number from 0"),
        ({"guide": True}, RecipeError, "guide: True .* auto, on, off"),
        ({"m": -1}, RecipeError, "m: -1 is out of range"),
        ({"every": 0}, RecipeError, "every: 0 is not a whole number from 1"),
        ({"through": "vae"}, RecipeError, "through: 'vae' .* denoiser, latents"),
        ({"w_clip_style": -1}, RecipeError, "w_clip_style: -1 is out of range"),
        ({"clip": 3}, RecipeError, "clip: 3 is not a text"),
        ({"precision": "int8"}, RecipeError, "precision: 'int8'"),
        ({"seed": 1.5}, RecipeError, "seed: 1.5"),
    ],
)
def test_bad_input(
    change: dict[str, Any],
    error: type[LorabakeError],
    text: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=text):
        guided(folder, tmp_path / "b", **{"guide": "on"} | change)
    assert not [*tmp_path.iterdir()]


def test_what_is_missing_is_told_before_heavy_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seers, "load", None)
    monkeypatch.setattr("lorabake.pipelines.load", None)
    with pytest.raises(RecipeError, match="style prompt is missing"):
        guided(folder, tmp_path / "b", guide="on", style_prompt="")
    with pytest.raises(UserError, match="no such folder or image"):
        guided(folder, tmp_path / "b", content_images="nowhere")


def test_loras_that_share_no_layer_of_the_denoiser(folder: Path, tmp_path: Path) -> None:
    for i, role in enumerate(ROLES):
        write_lora(tmp_path / f"{role}.safetensors", TEXT | OWN[i], "peft", i, keep=1.0)
    with pytest.raises(PairError, match=r"share no layer .* select=false"):
        make(tmp_path, tmp_path / "b")
    image = str(folder / "images")
    make(tmp_path, tmp_path / "b", select=False, content_images=image, style_images=image,
         **seeing(folder))  # fmt: skip
    assert lorabake.load(tmp_path / "b").manifest.guidance is not None


def test_an_encoder_that_gives_nothing(folder: Path, tmp_path: Path) -> None:
    model = encoders.dino()
    model.layernorm.weight.data.zero_()
    model.layernorm.bias.data.zero_()
    model.save_pretrained(tmp_path / "dino")
    images = {f"{role}_images": str(folder / "images") for role in ROLES}
    with pytest.raises(UserError, match="an encoder gives 0, NaN or Inf"):
        make(folder, tmp_path / "b", **images, dino=str(tmp_path / "dino"))


def test_memory_that_does_not_suffice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(seers, "load", full)
    with pytest.raises(MemoryLackError, match="precision=bfloat16"):
        guided(folder, tmp_path / "b")


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    paths = [str(folder / f"{role}.safetensors") for role in ROLES]
    image = str(folder / "images" / "1.png")
    settings = [f"--set={key}={value}" for key, value in QUICK.items()]
    result = CliRunner().invoke(
        cli, ["make", *paths, "-o", str(tmp_path / "b"), "--method", "dynamic", "--base",
              str(folder / "model"), "--content-images", image, "--style-prompt", "szn", "--clip",
              str(folder / "clip"), "--dino", str(folder / "dino"), *settings, "--json"],
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    wanted = {"clip": "clip", "dino": "dino", "content_images": "1.png", "style_prompt": "szn"}
    assert report["params"].items() >= wanted.items()
    assert report["notes"]["references"] == 2
