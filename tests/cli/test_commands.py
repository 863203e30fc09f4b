"""Each command on good input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

import lorabake
from lorabake.cli import cli

from .. import tiny
from ..oracle import Shapes, write_lora

SHAPES: Shapes = {
    f"unet.{block}.attentions.0.transformer_blocks.0.attn1.{p}": (16, 16)
    for block in ("down_blocks.0", "mid_block", "up_blocks.1")
    for p in ("to_q", "to_k", "to_v")
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_lora(tmp_path / "cat.safetensors", SHAPES, "kohya", 0)
    write_lora(tmp_path / "ink.safetensors", SHAPES, "peft", 1)
    lorabake.make("cat.safetensors", "ink.safetensors", "bundle.safetensors")
    return tmp_path


def picture(path: str | Path) -> Image.Image:
    with Image.open(path, formats=["PNG"]) as image:
        return image.convert("RGB")


def run(*command: str) -> Result:
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def run_json(*command: str) -> dict[str, Any]:
    return json.loads(run(*command, "--json").stdout)


@pytest.mark.usefixtures("folder")
def test_make() -> None:
    loras = ("make", "cat.safetensors", "ink.safetensors")
    found = run_json(*loras, "-o", "a.safetensors", "--preset", "klora", "--set", "alpha=2")
    assert found["output"] == "a.safetensors"
    assert found["method"] == "klora"
    assert found["params"]["alpha"] == 2
    assert {"layers", "seconds", "checks"} <= found.keys()
    text = run(*loras, "-o", "b.safetensors", "--method", "direct", "--style-strength", "0.5")
    assert "b.safetensors: direct" in text.stdout
    assert "verified" in text.stdout
    assert run(*loras, "-o", "b.safetensors", "--force", "--quiet").stdout == ""
    assert lorabake.load("b.safetensors").manifest.method == "klora"


@pytest.mark.usefixtures("folder")
def test_inspect() -> None:
    found = run_json("inspect", "bundle.safetensors", "--steps", "10")
    expected = {"format", "method", "params", "base", "sources", "gamma", "layers"}
    assert expected <= found.keys()
    assert [source["name"] for source in found["sources"]] == ["cat", "ink"]
    for layer in found["layers"]:
        assert layer["component"] == "unet"
        assert layer["module"].endswith(("to_q", "to_k", "to_v"))
        assert set(layer["select"]) <= {0, 1, None}
        assert len(layer["select"]) == 10
        one_sided = 0 in (layer["content_rank"], layer["style_rank"])
        assert (layer["content_score"] is None) == (layer["style_score"] is None) == one_sided
    plain = run_json("inspect", "bundle.safetensors")
    assert all("select" not in layer for layer in plain["layers"])
    text = run("inspect", "bundle.safetensors").stdout
    assert "method   klora" in text
    for part in ("down 0", "mid", "up 1", "all"):
        assert f"\n{part} " in text


def test_inspect_keeps_a_strangers_terminal_codes_away(folder: Path) -> None:
    metadata = {"modelspec.trigger_phrase": "sbu\x1b[2J"}
    save_file(load_file(folder / "cat.safetensors"), folder / "odd.safetensors", metadata)
    run("make", "odd.safetensors", "ink.safetensors", "-o", "odd_bundle.safetensors")
    assert "sbu?[2J" in run("inspect", "odd_bundle.safetensors").stdout


@pytest.mark.usefixtures("folder")
def test_inspect_where_both_are_applied() -> None:
    run("make", "cat.safetensors", "ink.safetensors", "-o", "d.safetensors", "--method", "direct")
    found = run_json("inspect", "d.safetensors", "--steps", "3")
    assert found["gamma"] is None
    both = [x for x in found["layers"] if x["content_rank"] and x["style_rank"]]
    assert all(layer["select"] == [None] * 3 for layer in both)


@pytest.mark.usefixtures("folder")
def test_inspect_shows_the_half_of_guidance() -> None:
    assert run_json("inspect", "bundle.safetensors")["half"] == "both"
    assert "half " not in run("inspect", "bundle.safetensors").stdout
    made = ("cat.safetensors", "ink.safetensors", "-o", "half.safetensors", "--set")
    said = run("make", *made, "half=conditional").stdout
    assert "conditional half of guidance only" in said
    found = run_json("inspect", "half.safetensors")
    assert (found["half"], found["format"]) == ("conditional", "1.3")
    assert "half     conditional" in run("inspect", "half.safetensors").stdout


def test_plot(folder: Path) -> None:
    text = run("plot", "bundle.safetensors", "-o", "plan.png", "--steps", "20").stdout
    assert "style" in text
    assert picture(folder / "plan.png").width > 500


@pytest.mark.usefixtures("folder")
def test_verify() -> None:
    assert "undamaged" in run("verify", "bundle.safetensors").stdout
    against = ("--against", "cat.safetensors", "ink.safetensors")
    checks = run_json("verify", "bundle.safetensors", *against)["checks"]
    assert checks["compared"] > checks["layers"]


def test_presets() -> None:
    names = {row["name"] for row in run_json("presets")["presets"]}
    assert {"klora", "klora-s-star", "klora-released", "fixed", "random", "direct"} <= names
    assert all(f"{name} " in run("presets").stdout for name in names)


def test_what_a_user_should_know_is_told_on_stderr(folder: Path) -> None:
    command = ("make", "cat.safetensors", "ink.safetensors", "-o", "c.safetensors", "--resume")
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0
    assert result.stderr.startswith("lorabake: warning: klora keeps no checkpoints")
    assert CliRunner().invoke(cli, [*command, "-f", "--quiet"]).output == ""


def test_generate(folder: Path) -> None:
    tiny.save_sd15(folder / "model")
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1" in n}
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        write_lora(folder / name, shapes, "peft", seed)
    run("make", "a.safetensors", "b.safetensors", "-o", "ab.safetensors", "--base", "model")
    command = ("generate", "ab.safetensors", "--base", "model", "--prompt", "a cat", "--steps", "2")
    run(*command, "-o", "one.png", "--seed", "4")
    assert picture("one.png").size == (16, 16)
    found = run_json(*command, "-o", "few.png", "--seed", "3", "--count", "2")
    assert found == {"output": "few.png", "seeds": [3, 4], "columns": ["klora"]}
    few, one = picture("few.png"), picture("one.png")
    assert few.crop((few.width - 16, 0, few.width, 16)).tobytes() == one.tobytes()
    text = run(*command, "-o", "all.png", "--compare", "--guidance", "3").stdout
    assert "base, content only, style only, direct merge, klora" in text


class Shown:
    """Stands for what the showcase made, which its own tests look at."""

    bundle = plan = comparison = "somewhere"
    others = ("here", "there")

    def to_json(self) -> dict[str, Any]:
        return {"seeds": 1}

    def __str__(self) -> str:
        return "a table"


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, int, bool]] = []

    def run_showcase(output: Path, seeds: int, *, force: bool, progress: object) -> Shown:
        calls.append((output, seeds, force))
        return Shown()

    monkeypatch.setattr("lorabake.demo.showcase.run", run_showcase)
    assert "a table" in run("demo").stdout
    assert run_json("demo", "-o", "mine", "--seeds", "1") == {"seeds": 1}
    # Its own folder may be replaced, a folder of the user's only by force.
    assert calls == [(Path("lorabake-demo"), 8, True), (Path("mine"), 1, False)]
