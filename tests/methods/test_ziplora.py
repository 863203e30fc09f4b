"""ZipLoRA from files to a file: every family, with and without images, interrupted, and refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import lorabake
from lorabake.cli import cli
from lorabake.errors import (
    BaseModelError,
    LorabakeError,
    OutputError,
    PairError,
    RecipeError,
    TrainingError,
    UserError,
)  # fmt: skip
from lorabake.training import loop

from .. import bases
from ..oracle import write_lora

pytestmark = pytest.mark.filterwarnings("ignore:the coefficients barely moved")

PROMPTS = {"content_prompt": "a sbu dog", "style_prompt": "a cat in szn style"}
QUICK = {"updates": 2, "references": 2, "reference_steps": 2, "resolution": 16, "method": "ziplora"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders, two LoRAs for each, and images."""
    folder = tmp_path_factory.mktemp("ziplora")
    for family in bases.FAMILIES:
        pipe = bases.FAMILIES[family]()
        pipe.save_pretrained(folder / family)
        component = "unet" if hasattr(pipe, "unet") else "transformer"
        linear = [
            (f"{component}.{name}", tuple(module.weight.shape))
            for name, module in getattr(pipe, component).named_modules()
            if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
        ]
        shapes = dict(linear[:9])
        if family == "sd15":
            shapes["text_encoder.text_model.encoder.layers.0.self_attn.out_proj"] = (24, 24)
        for seed, role in enumerate(("content", "style")):
            write_lora(folder / f"{family}-{role}.safetensors", shapes, "peft", seed)
    (folder / "images").mkdir()
    for i, shade in enumerate((40, 200)):
        Image.new("RGB", (24, 20), (shade, 90, i)).save(folder / "images" / f"{i}.png")
    return folder


def make(folder: Path, family: str, output: Path, **params: Any) -> lorabake.Report:
    given: dict[str, Any] = {"base": folder / family, **PROMPTS, **QUICK, **params}
    return lorabake.make(*loras(folder, family), output, **given)


def loras(folder: Path, family: str) -> tuple[Path, Path]:
    return folder / f"{family}-content.safetensors", folder / f"{family}-style.safetensors"


def flat(path: Path) -> torch.Tensor:
    found = lorabake.load(path).coefficients()
    return torch.cat([torch.stack(both) for both in found.values()], 1)


@pytest.mark.parametrize("family", [*bases.FAMILIES])
@pytest.mark.parametrize("images", [False, True])
def test_every_family_with_images_and_without(
    family: str, images: bool, folder: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = (
        {f"{role}_images": str(folder / "images") for role in ("content", "style")}
        if images else {}
    )  # fmt: skip
    report = make(folder, family, tmp_path / "z.safetensors", **given)
    assert report.notes["updates"] == 2
    assert 0 < report.notes["movement"] < 0.05
    assert report.notes["product_after"] != 1
    m = flat(tmp_path / "z.safetensors")
    assert m.shape[1] * 2 == report.notes["coefficients"]
    assert float((m - 1).abs().mean()) == pytest.approx(report.notes["movement"], rel=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["z.safetensors"]


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_layerwise(family: str, folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        **PROMPTS, "references": 1, "reference_steps": 2, "resolution": 16, "draws": 4,
    }  # fmt: skip
    paths = [tmp_path / "z.safetensors", tmp_path / "again.safetensors"]
    for path in paths:
        report = lorabake.make(
            *loras(folder, family), path, method="ziplora-layerwise", base=folder / family, **given
        )
        assert report.notes["residual_after"] < 0.9 * report.notes["residual_before"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert flat(paths[0]).std() > 0.01


def test_a_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        make(folder, "sd15", path, seed=seed)
    one, same, other = (path.read_bytes() for path in paths)
    assert one == same
    assert one != other


def test_no_updates_is_the_direct_merge_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="barely moved"):
        make(folder, "sdxl", tmp_path / "z.safetensors", updates=0)
    lorabake.make(*loras(folder, "sdxl"), tmp_path / "d.safetensors", method="direct")
    zipped, direct = (lorabake.load(tmp_path / f"{name}.safetensors") for name in "zd")
    for one, other in zip(zipped.manifest.layers, direct.manifest.layers, strict=True):
        for source in (0, 1):
            pairs = zip(zipped.factors(one, source), direct.factors(other, source), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("at", [0, 13])
def test_resumed_is_as_if_never_interrupted(
    at: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "z.safetensors"
    make(folder, "sd15", whole, updates=15)
    calls = itertools.count()
    fidelity = loop._fidelity  # pyright: ignore[reportPrivateUsage]
    left = tmp_path / "z.safetensors.training"
    before: list[int] = []

    def interrupted(*args: Any) -> Any:
        if next(calls) == at:
            before.append(len(load_file(left)["history"]))
            raise KeyboardInterrupt
        return fidelity(*args)

    monkeypatch.setattr(loop, "_fidelity", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(folder, "sd15", path, updates=15)
    monkeypatch.undo()
    assert before == [at // 10 * 10]
    assert len(load_file(left)["history"]) == at
    assert sorted(tmp_path.iterdir()) == sorted([whole, left])
    with pytest.raises(UserError, match=r"another training \(seed differ\)"):
        make(folder, "sd15", path, updates=15, resume=True, seed=9)
    with pytest.raises(UserError, match="Go on with it"):
        make(folder, "sd15", path, updates=15)
    if at:
        with pytest.raises(RecipeError, match="13 are done already"):
            make(folder, "sd15", path, updates=5, resume=True)
    monkeypatch.setattr("lorabake.training.scene.sample", None)  # references come from the file
    make(folder, "sd15", path, updates=15, resume=True)
    assert path.read_bytes() == whole.read_bytes()
    assert not left.exists()


def test_divergence_keeps_the_last_good_coefficients(folder: Path, tmp_path: Path) -> None:
    path, left = tmp_path / "z.safetensors", tmp_path / "z.safetensors.training"
    with pytest.raises(
        TrainingError, match="at update 2; the coefficients after update 0"
    ) as caught:
        make(folder, "sd15", path, updates=3, lr=1e30)
    assert caught.value.exit_code == 1
    assert [*tmp_path.iterdir()] == [left]
    kept = load_file(left)["coefficients"]
    assert torch.equal(kept, torch.ones_like(kept))
    report = make(folder, "sd15", path, updates=3, resume=True)
    assert report.notes["updates"] == 3


def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OutputError("cannot be written (No space left on device)")

    monkeypatch.setattr("lorabake.training.checkpoint.save", full)
    make(folder, "sd15", tmp_path / "z.safetensors")
    assert (tmp_path / "z.safetensors").exists()


def test_norms_batches_guidance_and_terms_make_a_difference(folder: Path, tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "default": {}, "norm": {"norm": "mse"}, "batch": {"batch": 2},
        "term": {"similarity": "cosine"},
        "guidance": {"reference_guidance": 1.5}, "lambda": {"lambda_": 1.0},
    }  # fmt: skip
    reports = {
        name: make(folder, "sd15", tmp_path / name, updates=1, **given)
        for name, given in settings.items()
    }
    before = reports["default"].notes
    assert reports["norm"].notes["content_before"] < 0.1 * before["content_before"]
    assert reports["term"].notes["similarity_before"] == pytest.approx(1)
    for name in ("batch", "guidance"):
        assert reports[name].notes["content_before"] != before["content_before"]
    assert not torch.equal(flat(tmp_path / "lambda"), flat(tmp_path / "default"))


def test_figures_are_means_over_a_tenth(folder: Path, tmp_path: Path) -> None:
    notes = make(folder, "sd15", tmp_path / "z.safetensors", updates=20, lr=0.02).notes
    assert notes["similarity_after"] < notes["similarity_before"]
    assert notes["content_after"] != notes["content_before"]


def test_nothing_of_others_is_touched(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "z.safetensors.training"
    mine.write_text("mine")
    with pytest.raises(UserError, match="Move it away"):
        make(folder, "sd15", tmp_path / "z.safetensors", force=True)
    lorabake.make(*loras(folder, "sd15"), tmp_path / "z.safetensors", method="klora")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"content_prompt": ""}, RecipeError, "content_prompt: .*--content-prompt"),
        ({"style_prompt": " "}, RecipeError, "style_prompt: .*--style-prompt"),
        ({"base": None}, RecipeError, "base: .*--base"),
        ({"lr": 0}, RecipeError, "lr: "),
        ({"lambda_": -1}, RecipeError, "lambda: "),
        ({"similarity": "euclid"}, RecipeError, "similarity: "),
        ({"content_images": 3}, RecipeError, "content_images: "),
        ({"style_images": "nowhere"}, UserError, "nowhere"),
        ({"resolution": 18}, BaseModelError, "resolution: .*Give 16"),
        ({"base": "sdxl"}, PairError, "layers do not fit the base model"),
    ],
)
def test_bad_input(
    change: dict[str, Any], error: type[LorabakeError], text: str, folder: Path, tmp_path: Path
) -> None:
    if change.get("base"):
        change = {"base": folder / change["base"]}
    with pytest.raises(error, match=text):
        make(folder, "sd15", tmp_path / "z.safetensors", **change)
    assert not [*tmp_path.iterdir()]


def test_images_are_inputs_and_never_replaced(folder: Path) -> None:
    image = folder / "images" / "0.png"
    before = image.read_bytes()
    with pytest.raises(OutputError, match="one of the inputs"):
        make(folder, "sd15", image, force=True, style_images=str(folder / "images"))
    assert image.read_bytes() == before


def test_memory_that_does_not_suffice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(loop, "_fidelity", full)
    with pytest.raises(LorabakeError, match="gradient_checkpointing=true, precision=bfloat16"):
        make(folder, "sd15", tmp_path / "z.safetensors")


def command(folder: Path, *more: str) -> tuple[int, str, str]:
    content, style = map(str, loras(folder, "sd15"))
    base = str(folder / "sd15")
    result = CliRunner().invoke(
        cli, ["make", content, style, "--method", "ziplora", "--base", base, *more]
    )
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    images = str(folder / "images")
    status, out, err = command(
        folder, "-o", str(tmp_path / "z"), "--content-prompt", "a sbu dog", "--style-prompt", "szn",
        "--content-images", images, "--updates", "2", "--lambda", "0.5", "--lr", "0.03", "--seed",
        "7", "--dtype", "float32", "--set", "resolution=16", "--set", "references=1", "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    params = json.loads(out)["params"]
    wanted = {"lambda": 0.5, "lr": 0.03, "seed": 7, "updates": 2, "content_images": "images"}
    assert params.items() >= wanted.items()
    assert params == lorabake.load(tmp_path / "z").manifest.params

    status, out, err = command(folder, "-o", str(tmp_path / "y"), "--content-prompt", "a sbu dog")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lorabake: style_prompt: the style prompt is missing")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(precision: str, folder: Path, tmp_path: Path) -> None:
    """Coefficients are float32 and near those of a float32 model."""
    paths = [tmp_path / name for name in ("half.safetensors", "float.safetensors")]
    for path, value in zip(paths, (precision, "float32"), strict=True):
        make(
            folder, "sd15", path, updates=4, precision=value, gradient_checkpointing=True,
            content_images=folder / "images", style_images=folder / "images",
        )  # fmt: skip
    half, whole = map(flat, paths)
    assert half.dtype == torch.float32
    assert float((half - whole).abs().mean()) < 0.25 * float((whole - 1).abs().mean())


def test_a_base_from_elsewhere_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "sd15", tmp_path / "base")
    (tmp_path / "base" / "vae" / "config.json").write_text("{")
    with pytest.raises(BaseModelError):
        make(folder, "sd15", tmp_path / "z.safetensors", base=tmp_path / "base")
    assert not (tmp_path / "z.safetensors").exists()
