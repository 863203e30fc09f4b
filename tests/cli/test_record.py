"""`lorabake record`: what it prints and writes, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lorabake
from lorabake.cli import cli

from .. import bases
from ..oracle import write_lora

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
SHAPES = {f"{BLOCK}.attn1.{name}": (8, 8) for name in ("to_q", "to_k", "to_v", "to_out.0")}
RECORD = ("record", "live", "--base", "model", "--seeds", "1", "--steps", "2", "-o", "out")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    bases.save("sd15", folder / "model")
    paths = [folder / f"{name}.safetensors" for name in ("cat", "ink")]
    for seed, path in enumerate(paths):
        write_lora(path, SHAPES, "peft", seed, keep=1.0)
    lorabake.make(paths[0], paths[1], folder / "live", method="dynamic", guide="off")
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    (made / "out").unlink(missing_ok=True)
    return made


def run(*command: str) -> Result:
    return CliRunner().invoke(cli, command)


def test_record_and_what_becomes_of_it(folder: Path) -> None:
    prompts = ("--prompt", "a cat", "--prompt", "ink")
    result = run(*RECORD, *prompts, "--seed", "3", "--guidance", "2", "--bins", "1", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    wanted = {"prompts": ["a cat", "ink"], "first_seed": 3, "bins": 1, "guidance_scale": 2.0}
    assert found["params"].items() >= wanted.items()
    assert (found["runs"], found["live"], found["output"]) == (2, found["layers"], "out")
    assert found["agreement"].keys() == {"runs", "within", "between", "halves"}
    assert found["direct"]["error"] is not None
    table = json.loads(run("inspect", "out", "--json", "--steps", "3").stdout)
    rows = [layer["select"] for layer in table["layers"]]
    assert {tuple(row) for row in rows} <= {(0, 0, 0), (1, 1, 1)}
    assert sum(row[0] for row in rows) / len(rows) == pytest.approx(found["style"])
    against = run("verify", "out", "--against", "cat.safetensors", "ink.safetensors")
    assert "undamaged" in against.stdout
    assert run("plot", "out", "-o", "plan.png", "--force").exit_code == 0
    (folder / "plan.png").unlink()


def test_what_it_prints() -> None:
    text = run(*RECORD, "--prompt", "a cat").stdout
    assert text.startswith("out: dynamic-recorded, ")
    for word in ("in 2 bins (runs: 1)", "guidance halves", "followed: ", "direct merge"):
        assert word in text
    assert run(*RECORD, "--prompt", "a cat", "--force", "--quiet").output == ""


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "Missing option '--prompt'"),
        (("--prompt", ""), "prompts: one is empty"),
        (("--prompt", "a \udcff"), "prompts: one is not UTF-8"),
        (("--prompt", "a", "--bins", "3"), "bins: 3 is not a whole number from 1 to 2"),
        (("--prompt", "a", "--steps", "5000"), "num_train_timesteps, 1000"),
        (("--prompt", "a", "--guidance", "nan"), "guidance_scale: "),
        (("--prompt", "a", "--width", "8"), "one of width and height is missing"),
        (("--prompt", "a", "--base", "nowhere"), "no such folder"),
        (("--prompt", "a", "-o", "live", "--force"), "one of the inputs"),
        (("--prompt", "a", "-o", "cat.safetensors"), "exists already"),
    ],
)
def test_bad_input(given: tuple[str, ...], text: str, folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    result = run(*RECORD, *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == before
