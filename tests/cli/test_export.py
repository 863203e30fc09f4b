"""`lorabake export` on good and on bad input."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lorabake
from lorabake import lora
from lorabake.cli import cli

from ..oracle import Shapes, write_lora

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHAPES: Shapes = {
    f"unet.{block}.attentions.0.transformer_blocks.0.attn1.{p}": (16, 16)
    for block in ("down_blocks.0", "mid_block", "up_blocks.1")
    for p in ("to_q", "to_k", "to_v")
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("cat", "ink")):
        write_lora(tmp_path / f"{name}.safetensors", SHAPES, "kohya", i, keep=1.0)
    lorabake.make("cat.safetensors", "ink.safetensors", "b.safetensors")


def run(*command: str) -> Result:
    return CliRunner().invoke(cli, ["export", *command])


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_the_report(to: str) -> None:
    result = run("b.safetensors", "-o", "plain", "--to", to)
    assert result.exit_code == 0, result.output
    first, second, *worst, _ = result.stdout.splitlines()
    rank = max(layer.rank for layer in lora.read("plain").layers.values())
    assert first == (f"plain: the whole plan (klora), for {to}, 9 sd15 layers, unet rank {rank}")
    assert second.startswith("error of being static: ")
    assert 1 <= len(worst) <= 5
    errors = [float(line.split("%")[0]) for line in worst]
    assert errors == sorted(errors, reverse=True)


def test_json() -> None:
    result = run("b.safetensors", "-o", "plain", "--rank", "2", "--json")
    found = json.loads(result.stdout)
    assert not found["exact"]
    (part,) = found["parts"]
    assert part["ranks"] == {"unet": 2}
    assert part["files"] == ["plain"]
    assert {layer["layer"] for layer in part["layers"]} == {*SHAPES}
    assert all(layer["rank"] <= 2 for layer in part["layers"])
    assert part["plan_error"] > 0 < part["rank_error"]


def test_other_ways() -> None:
    at = run("b.safetensors", "-o", "at", "--at", "0.9")
    assert "one moment of the plan (klora)" in at.stdout
    assert "\nexact: " in at.stdout
    timeline = run("b.safetensors", "-o", "t.safetensors", "--timeline", "3")
    files = [line.split()[3] for line in timeline.stdout.splitlines() if line.startswith("  0.")]
    assert files
    assert {*files, "t-timeline.json"} == {path.name for path in Path().glob("t-*")}
    steps = run("b.safetensors", "-o", "s", "--steps", "4", "--quiet")
    assert steps.stdout == ""
    for role, source in (("content", "cat"), ("style", "ink")):
        assert run("b.safetensors", "-o", role, f"--{role}-only").exit_code == 0
        back, first = lora.read(role), lora.read(f"{source}.safetensors")
        assert [*back.layers] == [*first.layers]
        for name, layer in first.layers.items():
            found, wanted = back.layers[name].delta(), layer.delta()
            assert (found - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--at", "1"], "--at"),
        (["--at", "nan"], "out of range"),
        (["--at", "0.5", "--timeline", "2"], "at and timeline cannot both be given"),
        (["--content-only", "--style-only"], "not both"),
        (["--content-only", "--at", "0"], "at and only cannot both be given"),
        (["--rank", "999"], "not less than what the layers have"),
        (["--to", "gguf"], "--to"),
        (["-o", "b.safetensors", "--force"], "one of the inputs"),
        (["-o", "cat.safetensors"], "exists already"),
        (["-o", "nowhere/plain"], "folder does not exist"),
        (["-o", "nowhere/plain", "--to", "peft"], "folder does not exist"),
        (["-o", "plain/"], "is not a file name"),
        (["-o", ".", "--timeline", "2", "--to", "peft"], "is not a file name"),
        (["-o", "cat.safetensors", "--to", "peft"], "cannot be written"),
    ],
)
def test_bad_input(options: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    result = run("b.safetensors", "-o", "plain", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_plain_lora_is_no_bundle() -> None:
    result = run("cat.safetensors", "-o", "plain")
    assert result.exit_code == 2
    assert "not a bundle" in result.stderr


def test_the_page_for_users(capsys: pytest.CaptureFixture[str]) -> None:
    """Every block of docs/export.md runs, in order."""
    for name, role in (("cat", "subject"), ("ink", "style")):
        Path(f"{name}.safetensors").rename(f"{role}.safetensors")
    for language, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body, PAGE.name, "exec"), {})
            assert capsys.readouterr().out.startswith("False 0.")
        else:
            for line in body.strip().splitlines():
                result = CliRunner().invoke(cli, shlex.split(line)[1:])
                assert result.exit_code == 0, f"{line}\n{result.output}"
    assert Path("timeline-timeline.json").exists()
