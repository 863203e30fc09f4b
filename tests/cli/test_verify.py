"""`lorabake verify` on what other tools leave of a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorabake.cli import cli

from ..oracle import Shapes, write_lora

SHAPES: Shapes = {
    f"unet.up_blocks.0.attentions.{i}.transformer_blocks.1.attn1.{p}": (16, 16)
    for i in range(2)
    for p in ("to_q", "to_k")
}
VERIFY = ("verify", "b.safetensors")
AGAINST = ("--against", "cat.safetensors", "ink.safetensors")


def run(*command: str) -> Result:
    return CliRunner().invoke(cli, command)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(AGAINST[1:]):
        write_lora(tmp_path / name, SHAPES, "peft", seed, keep=1.0)
    made = run("make", *AGAINST[1:], "-o", "b.safetensors", "--method", "blora", "--quiet",
               "--set", 'style_blocks=["up_blocks.0.attentions.1"]',
               "--set", "content_blocks=up_blocks.0.attentions.0")  # fmt: skip
    assert (made.exit_code, made.output) == (0, "")
    return tmp_path


def refused(*command: str) -> str:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_blora_and_inspect() -> None:
    found = json.loads(run(*VERIFY, *AGAINST, "--json").stdout)["checks"]
    assert (found["layers"], found["compared"], found["left_out"]) == (4, 4, 4)
    assert found["resaved"] == ""
    page = run("inspect", "b.safetensors").stdout
    assert "blora (content_blocks up_blocks.0.attentions.0, elsewhere none, style_blocks up" in page
    assert page.splitlines()[-1].split()[-3:] == ["50%", "50%", "0%"]


def test_what_became_a_plain_lora() -> None:
    path = Path("b.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({key: t.half() for key, t in tensors.items()}, path, metadata)
    assert "only saved in another precision (float16 now)" in refused(*VERIFY)
    assert "saved again in float16, its plan holds" in run(*VERIFY, *AGAINST).stdout
    order = torch.arange(len(next(t for k, t in tensors.items() if "down" in k)) - 1, -1, -1)
    save_file({k: t[order] if "down" in k else t[:, order].contiguous()
               for k, t in tensors.items()}, path, metadata)  # fmt: skip
    for command in (VERIFY, (*VERIFY, *AGAINST)):
        assert "It is a plain LoRA now: make the bundle again" in refused(*command)
    save_file(tensors, path)
    assert "this is an ordinary LoRA, not a bundle" in refused(*VERIFY)
    assert "its plan is lost" in refused("inspect", "b.safetensors")
