"""Bad input to `generate` and `make --base`: status 2, one line, no picture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorabake.cli import cli

from .. import tiny
from ..oracle import write_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    tiny.save_sd15(folder / "model")
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1" in n}
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        write_lora(folder / name, shapes, "peft", seed)
    tiny.save_sd15(folder / "damaged")
    (folder / "damaged" / "model_index.json").write_text("[" * 100_000)
    return folder


@pytest.fixture
def bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    command = ("make", "a.safetensors", "b.safetensors", "-o", "ab.safetensors", "--force")
    assert CliRunner().invoke(cli, command).exit_code == 0
    return "ab.safetensors"


def refusal(*command: str) -> str:
    before = sorted(os.listdir())  # noqa: PTH208
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert len(result.stderr) < 1500
    assert "unexpected" not in result.stderr
    assert sorted(os.listdir()) == before  # noqa: PTH208
    return result.stderr


GENERATE = ("--base", "model", "--prompt", "a cat", "--steps", "2", "-o", "x.png")
OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "seed": (("--seed", str(2**64)), "--seed"),
    "steps": (("--steps", "5000"), "num_train_timesteps, 1000"),
    "style strength": (("--style-strength", "1e308"), "style_strength"),
    "content strength": (("--content-strength", "-1e308"), "content_strength"),
    "prompt": (("--prompt", "a \udcff"), "'--prompt': it is not UTF-8"),
    "negative prompt": (("--negative-prompt", "\udcff"), "'--negative-prompt': it is not UTF-8"),
    "half": (("--half", "cond"), "'cond' is not one of 'both', 'conditional'"),
    "guidance": (("--guidance", "nan"), "'--guidance': a finite number"),
    "infinite guidance": (("--guidance", "-inf"), "'--guidance': a finite number"),
    "over the model": (
        ("-o", "model/model_index.json", "--force"),
        "one of the inputs or lies in one",
    ),
    "width": (("--width", "64"), "Give --width and --height together"),
    "size": (("--width", "9" * 30, "--height", "8"), "cannot paint with these parts and options"),
    "damaged model": (("--base", "damaged"), "damaged: cannot be loaded"),
    "long base": (("--base", "x" * 5000), "no such folder"),
    "no such user": (("--base", "~nosuchuser/model"), "no such folder"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_generate(case: str, bundle: str) -> None:
    given, message = OPTIONS[case]
    assert message in refusal("generate", bundle, *GENERATE, *given)


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("base", ["damaged", "x" * 5000, "~nosuchuser/model"])
def test_make_with_a_base(base: str) -> None:
    message = refusal("make", "a.safetensors", "b.safetensors", "-o", "x.png", "--base", base)
    assert "cannot be loaded" in message or "no such folder" in message
