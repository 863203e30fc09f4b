"""The commands on a bundle that chooses live and guides its latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import lorabake
from lorabake.cli import cli
from lorabake.errors import OverrideError

from .. import encoders, tiny
from ..oracle import write_lora

PROMPT = ("--prompt", "a cat in ink", "--steps", "2")
SEEING = ("--clip", "clip", "--dino", "dino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two encoders, and a bundle of two LoRAs guided by given images."""
    folder = tmp_path_factory.mktemp("dynamic")
    tiny.save_sd15(folder / "model")
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1" in n}
    for i, role in enumerate(("clip", "dino")):
        encoders.save(role, folder / role)
        write_lora(folder / f"{i}.safetensors", shapes, "peft", i, keep=1.0)
        Image.effect_noise((32, 32), 50 + i).convert("RGB").save(folder / f"{i}.png")
    lorabake.make(
        folder / "0.safetensors", folder / "1.safetensors", folder / "b.safetensors",
        method="dynamic", content_images=str(folder / "0.png"), m=1.0,
        style_images=str(folder / "1.png"), clip=str(folder / "clip"), dino=str(folder / "dino"),
    )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(*command: str) -> Result:
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def test_generate_guides_and_reports_and_plot_draws_it() -> None:
    generate = ("generate", "b.safetensors", "--base", "model", *PROMPT)
    run(*generate, *SEEING, "-o", "guided.png", "--report", "run.json", "--compare")
    report = json.loads(Path("run.json").read_text())
    assert report["progress"] == [0.0, 0.5]
    assert [step["progress"] for step in report["guidance"]] == [0.0, 0.5]
    assert all(len(step["score"]) == 1 for step in report["guidance"])
    chosen = [c for x in report["layers"] for p in x["decisions"] for call in p for c in call or ()]
    assert {*chosen} == {0, 1}
    page = run("plot", "b.safetensors", "-o", "run.png", "--report", "run.json").stdout
    share = sum(chosen) / len(chosen)
    assert f"{1 - share:.0%} content, {share:.0%} style" in page
    run(*generate, *SEEING, "-o", "again.png")
    run(*generate, "--no-guidance", "-o", "plain.png")
    images = {}
    for name in ("again", "plain"):
        with Image.open(f"{name}.png") as file:
            images[name] = file.convert("RGB").tobytes()
    assert images["again"] != images["plain"]


def test_inspect_tells_what_is_live_and_what_guides() -> None:
    found = json.loads(run("inspect", "b.safetensors", "--json", "--steps", "3").stdout)
    assert found["live"] == {
        "criterion": "kl", "temperature": 1.0, "scope": "sample", "tokens": 0
    }  # fmt: skip
    assert found["guidance"]["encoders"] == {"clip": "clip", "dino": "dino"}
    assert found["guidance"]["references"] == [
        {"prompt": None, "seed": None, "clip": 12, "dino": 16}
    ] * 2  # fmt: skip
    assert all(layer["live"] and layer["select"] == [None] * 3 for layer in found["layers"])
    page = run("inspect", "b.safetensors").stdout
    assert "guidance m 1 by clip and dino, references: given images, given images" in page
    assert page.splitlines()[-1].endswith("0%      0%      0%    100%")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("generate", "--base", "model", *PROMPT),
         "clip: the bundle's CLIP encoder is known by its folder's name only. Give its folder"),
        (("generate", "--base", "model", *PROMPT, "--clip", "clip", "--dino", "nowhere"),
         "nowhere: no such folder"),
        (("generate", "--base", "model", *PROMPT, "--clip", "dino", "--dino", "dino"),
         "the clip encoder gives embeddings of shape [1, 16]"),
        (("generate", "--base", "model", *PROMPT, *SEEING, "--report", "out.png"),
         "Give --report another file"),
        (("plot", "--report", "model/model_index.json"), "is not a replay's report"),
        (("plot", "--report", "run.json", "--steps", "3"), "A report has its own steps"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(command: tuple[str, ...], message: str) -> None:
    name, *rest = command
    result = CliRunner().invoke(cli, [name, "b.safetensors", "-o", "out.png", *rest])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not Path("out.png").exists()


def test_encoders_of_a_bundle_without_references(tmp_path: Path) -> None:
    lorabake.make("0.safetensors", "1.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(OverrideError, match="no references to guide latents by"):
        lorabake.encoders(lorabake.load(tmp_path / "b.safetensors"))
