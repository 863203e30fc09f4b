"""`lorabake compare` and `lorabake eval` as commands; what they do is tested in tests/compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorabake.cli import cli

from ..compare import stage


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage.world(tmp_path_factory.mktemp("world"))


def good(world: Path, out: Path) -> list[str]:
    roles = [x for r in ("clip", "dino", "csd") for x in (f"--{r}", str(world / r))]
    return [
        "compare", str(world / "cat.safetensors"), str(world / "ink.safetensors"), "--base",
        str(world / "model"), "--prompt", "a dog", "-o", str(out), "--seeds", "1", "--steps", "1",
        *roles,
    ]  # fmt: skip


def test_compare(world: Path, tmp_path: Path) -> None:
    command = [*good(world, tmp_path / "out"), "--method", "klora:half=both"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "recommended: " in result.stdout
    assert result.stderr.count("has no trigger word") == 2
    assert (tmp_path / "out" / "report.html").is_file()
    again = (tmp_path / "out" / "command.txt").read_text()
    assert "--method klora:half=both" in again
    found = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert [row["label"] for row in found["rows"]][-1] == "klora half=both"


def test_bad_input_is_one_line(world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    (tmp_path / "p.csv").write_text("content,prompts\na,b\n")
    flux = "transformer.transformer_blocks.0.attn.to_q"
    single = "transformer.single_transformer_blocks.0.attn.to_q"
    flux_lora = str(tmp_path / "flux.safetensors")
    stage.write_lora(
        tmp_path / "flux.safetensors", {flux: (16, 16), single: (16, 16)}, "peft", 2, keep=1.0
    )
    compare = good(world, tmp_path / "out")
    of_base = ["--base", str(world / "model"), "-o", str(tmp_path / "out")]
    cases = {
        "no such folder or image": [*compare, "--content-images", str(tmp_path / "none")],
        "has no images": [*compare, "--style-images", str(tmp_path / "empty")],
        "there is no method 'kloar'": [*compare, "--method", "kloar"],
        "the content prompt is missing": [*compare, "--method", "ziplora"],
        "is not empty": good(world, tmp_path / "mine"),
        "the content LoRA is for flux": [*compare[:1], flux_lora, *compare[2:]],
        "no such folder": [*compare, "--base", "nowhere"],
        "has no column style": ["eval", str(tmp_path / "p.csv"), *of_base],
        "cannot be read": ["eval", str(tmp_path / "none.csv"), *of_base],
        "Give --base and -o": ["eval", str(tmp_path / "p.csv")],
        "write i/n": ["eval", "p.csv", *of_base, "--shard", "3"],
        "Give --dreambooth, --styledrop and --loras": ["eval", "p.csv", "--dreambooth", "x"],
    }
    for words, command in cases.items():
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2, (words, result.output)
        assert words in result.stderr, (words, result.stderr)
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.stderr
