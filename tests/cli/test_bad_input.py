"""Bad input: status 2, one line that says what, where and what to do, and no file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import lorabake
from lorabake.cli import cli

from ..oracle import Shapes, write_lora
from .test_commands import SHAPES

FLUX: Shapes = {
    "transformer.transformer_blocks.0.attn.to_q": (16, 16),
    "transformer.single_transformer_blocks.0.attn.to_q": (16, 16),
}
NINES = "9" * 5000
GOOD = ("make", "cat.safetensors", "ink.safetensors", "-o", "out.safetensors")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    write_lora(folder / "cat.safetensors", SHAPES, "kohya", 0)
    write_lora(folder / "ink.safetensors", SHAPES, "peft", 1)
    write_lora(folder / "flux.safetensors", FLUX, "peft", 2, keep=1.0)
    other = {n.replace("attn1", "attn2"): s for n, s in SHAPES.items()}
    write_lora(folder / "disjoint.safetensors", other, "peft", 3)
    wide: Shapes = dict.fromkeys(SHAPES, (32, 32))
    write_lora(folder / "wide.safetensors", wide, "peft", 4)
    lorabake.make(folder / "cat.safetensors", folder / "ink.safetensors", folder / "b.safetensors")
    raw = (folder / "b.safetensors").read_bytes()
    (folder / "flipped.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (folder / "cut.safetensors").write_bytes((folder / "cat.safetensors").read_bytes()[:-9])
    (folder / "empty.safetensors").touch()
    (folder / "text.safetensors").write_text("not a LoRA at all, but some words")
    (folder / "pickle.bin").write_bytes(b"\x80\x04")
    (folder / "taken.safetensors").write_bytes(b"old")
    (folder / "nothing").mkdir()
    (folder / "broken.toml").write_text("method = ")
    (folder / "good.toml").write_text('method = "klora"\n')
    (folder / "long.toml").write_text(f'method = "klora"\n[params]\ngamma = {NINES}\n')
    (folder / "deep.toml").write_text(f'method = "klora"\n[params]\ngamma = {"[" * 5000}\n')
    (folder / "demo").mkdir()
    (folder / "demo" / "plan.png").write_text("mine")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    shutil.copy(folder / "ink.safetensors", folder / "peft" / "adapter_model.safetensors")
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text("{}")
    changed(folder, "tiny.safetensors", lambda key, t: t if "alpha" in key else t * 1e-7)
    changed(folder, "huge.safetensors", lambda key, t: t if "alpha" in key else t * 1e30)
    (folder / "odd.toml").write_text('method = "klora"\n[params]\nalhpa = 1.0\n')
    changed(folder, "nan.safetensors", lambda key, t: t * float("nan"))
    changed(folder, "short.safetensors", lambda key, t: t[:, :-1] if "lora_down" in key else t)
    tensors = {k.replace("lora_down", "hada_w1_a"): v for k, v in load_cat(folder).items()}
    save_file(tensors, folder / "loha.safetensors")
    dora = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale": torch.ones(
            16
        )
    }
    save_file(load_cat(folder) | dora, folder / "dora.safetensors")
    return folder


def load_cat(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "cat.safetensors")


def changed(folder: Path, name: str, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    tensors = {k: change(k, v).contiguous() for k, v in load_cat(folder).items()}
    save_file(tensors, folder / name)


def make_with(name: str) -> tuple[str, ...]:
    return ("make", name, "ink.safetensors", "-o", "out.safetensors")


CASES = {
    "no command": ("bake",),
    "no style": ("make", "cat.safetensors", "-o", "out.safetensors"),
    "no output": GOOD[:3],
    "unknown option": (*GOOD, "--fast"),
    "missing file": make_with("dog.safetensors"),
    "missing folder": make_with("nothing"),
    "empty file": make_with("empty.safetensors"),
    "text file": make_with("text.safetensors"),
    "truncated file": make_with("cut.safetensors"),
    "pickle": make_with("pickle.bin"),
    "NaN": make_with("nan.safetensors"),
    "shapes that lie": make_with("short.safetensors"),
    "LoHa": make_with("loha.safetensors"),
    "DoRA": make_with("dora.safetensors"),
    "another family": make_with("flux.safetensors"),
    "no common layer": make_with("disjoint.safetensors"),
    "another width": make_with("wide.safetensors"),
    "unknown method": (*GOOD, "--method", "kloar"),
    "unknown preset": (*GOOD, "--preset", "kloar"),
    "missing preset file": (*GOOD, "--preset", "my.toml"),
    "broken preset": (*GOOD, "--preset", "broken.toml"),
    "odd preset": (*GOOD, "--preset", "odd.toml"),
    "method and preset differ": (*GOOD, "--preset", "klora", "--method", "direct"),
    "unknown parameter": (*GOOD, "--set", "alhpa=1"),
    "parameter without value": (*GOOD, "--set", "alpha"),
    "parameter out of range": (*GOOD, "--set", "gamma=-1"),
    "parameter of another type": (*GOOD, "--set", "alpha=often"),
    "parameter of thousands of digits": (*GOOD, "--set", f"gamma={NINES}"),
    "hexadecimal of thousands of digits": (*GOOD, "--set", f"k=0x{'f' * 5000}"),
    "parameter of thousands of brackets": (*GOOD, "--set", f"alpha={'[' * 5000}"),
    "preset with thousands of digits": (*GOOD, "--preset", "long.toml"),
    "preset with thousands of brackets": (*GOOD, "--preset", "deep.toml"),
    "no method's name": (*GOOD, "--method", ""),
    "too small for float16": (*make_with("tiny.safetensors"), "--dtype", "float16"),
    "too large": (*make_with("huge.safetensors"), "--content-strength", "1e30"),
    "too large without gamma": (
        *make_with("huge.safetensors"), "--content-strength", "1e300", "--set", "gamma=none",
    ),
    "a strength beyond float32": (*GOOD, "--content-strength", "1e-320"),
    "unknown dtype": (*GOOD, "--dtype", "int8"),
    "unknown device": (*GOOD, "--device", "toaster"),
    "device without its module": (*GOOD, "--device", "privateuseone"),
    "device that warns": (*GOOD, "--device", "mkldnn"),
    "strength of zero": (*GOOD, "--content-strength", "0"),
    "strength that is no number": (*GOOD, "--style-strength", "much"),
    "missing base": (*GOOD, "--base", "no-such-folder"),
    "base without a model": (*GOOD, "--base", "nothing"),
    "output exists": (*GOOD[:4], "taken.safetensors"),
    "output in no folder": (*GOOD[:4], "nowhere/out.safetensors"),
    "output is a folder": (*GOOD[:4], "nothing"),
    "output is an input": (*GOOD[:4], "ink.safetensors", "--force"),
    "output is the preset": (*GOOD[:4], "good.toml", "--preset", "good.toml", "--force"),
    "output is in an input folder": (
        "make", "peft", "cat.safetensors", "-o", "peft/adapter_config.json", "--force",
    ),
    "output is in the base": (*GOOD[:4], "model/model_index.json", "--base", "model", "--force"),
    "output is not UTF-8": (*GOOD[:4], "out\udcff.safetensors"),
    "output of a very long name": (*GOOD[:4], "o" * 5000),
    "demo over a file of mine": ("demo", "-o", "demo"),
    "demo into a file": ("demo", "-o", "cat.safetensors"),
    "demo below a file": ("demo", "-o", "cat.safetensors/demo"),
    "inspect a LoRA": ("inspect", "cat.safetensors"),
    "inspect nothing": ("inspect", "dog.safetensors"),
    "inspect a damaged file": ("inspect", "cut.safetensors"),
    "inspect no steps": ("inspect", "b.safetensors", "--steps", "0"),
    "plot over something": ("plot", "b.safetensors", "-o", "taken.safetensors"),
    "plot over the bundle": ("plot", "b.safetensors", "-o", "b.safetensors", "--force"),
    "verify a damaged bundle": ("verify", "flipped.safetensors"),
    "verify against another": (
        "verify", "b.safetensors", "--against", "ink.safetensors", "cat.safetensors",
    ),
    "generate without a base": ("generate", "b.safetensors", "--prompt", "x", "-o", "x.png"),
    "generate with no base": (
        "generate", "b.safetensors", "--base", "nothing", "--prompt", "x", "-o", "x.png",
    ),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_no_file(
    case: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    before = contents(folder)
    result = CliRunner().invoke(cli, CASES[case])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr) < 1000
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("lorabake: ")
    assert "Traceback" not in result.stderr
    assert "unexpected" not in result.stderr
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(template: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    loras = [str(template / name) for name in ("cat.safetensors", "ink.safetensors")]
    result = CliRunner().invoke(cli, ["make", *loras, "-o", str(tmp_path / "out.safetensors")])
    tmp_path.chmod(0o700)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_near_names_are_suggested(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(template)
    for extra, near in (
        (("--method", "kloar"), "klora"),
        (("--preset", "kloar"), "klora"),
        (("--set", "alhpa=1"), "alpha"),
    ):
        result = CliRunner().invoke(cli, [*GOOD[:4], str(tmp_path / "x"), *extra])
        assert near in result.stderr


def test_json_is_silent_on_errors(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(template)
    result = CliRunner().invoke(cli, ["inspect", "b.safetensors", "--json"])
    assert json.loads(result.stdout)
    result = CliRunner().invoke(cli, ["inspect", "cut.safetensors", "--json"])
    assert result.stdout == ""
