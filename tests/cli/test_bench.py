"""`lorabake bench`: the table and JSON of a user's model, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import lorabake
from lorabake.cli import cli

from .. import tiny
from ..oracle import Shapes, write_lora

LABELS = (
    "base model alone", "one LoRA, fused (the floor)", "PEFT, one adapter", "PEFT, two adapters",
    "lorabake, fused", "lorabake, hooks", "K-LoRA in every layer call",
)  # fmt: skip
FLUX: Shapes = {
    "transformer.transformer_blocks.0.attn.to_q": (16, 16),
    "transformer.single_transformer_blocks.0.attn.to_q": (16, 16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tiny.save_sd15(folder / "model")
    attention = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1" in n}
    for name, shapes in (("bundle", attention), ("flux", FLUX)):
        files = [folder / f"{role}.safetensors" for role in ("content", "style")]
        for seed, file in enumerate(files):
            write_lora(file, shapes, "peft", seed, keep=1.0)
        lorabake.make(files[0], files[1], folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


GOOD = ("bench", "bundle.safetensors", "--base", "model", "--steps", "2", "--repeats", "1")


def test_table() -> None:
    result = CliRunner().invoke(cli, GOOD)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert [line[: len(label)] for line, label in zip(lines[1:], LABELS, strict=False)] == [*LABELS]
    assert "s/image (2)" in lines[0]
    assert "× floor (2)" in lines[0]
    assert "UNet2DConditionModel, float32, 16 × 16, eager, medians of 1 round" in result.stdout


def test_json() -> None:
    options = ("--json", "--quiet", "--dtype", "bfloat16", "--width", "24", "--height", "16")
    result = CliRunner().invoke(cli, (*GOOD, *options))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["label"] for row in found["rows"]] == [*LABELS]
    assert found["machine"]["dtype"] == "bfloat16"
    assert found["machine"]["size"] == "24 × 16"
    assert all(row["image"]["2"] > 0 for row in found["rows"])


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no steps": (("--steps", "0"), "--steps"),
    "too many steps": (("--steps", "5000"), "num_train_timesteps, 1000"),
    "no repeats": (("--repeats", "0"), "--repeats"),
    "no such base": (("--base", "nowhere"), "no such folder"),
    "a file as base": (("--base", "bundle.safetensors"), "is a file"),
    "device": (("--device", "abacus"), "cannot be used here"),
    "dtype": (("--dtype", "int8"), "--dtype"),
    "width": (("--width", "64"), "Give --width and --height together"),
    "prompt": (("--prompt", "\udcff"), "cannot paint with these parts and options"),
    "size": (("--width", "9" * 30, "--height", "8"), "cannot paint with these parts and options"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(options: tuple[str, ...], message: str) -> None:
    refused((*GOOD, *options), message)


def test_a_bundle_that_does_not_fit() -> None:
    refused(("bench", "flux.safetensors", *GOOD[2:]), "transformer")
    refused(("bench", "content.safetensors", *GOOD[2:]), "an ordinary LoRA, not a bundle")


def refused(command: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "unexpected" not in result.stderr
