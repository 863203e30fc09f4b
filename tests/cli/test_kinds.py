"""LoRAs that are no plain ones, and files that fit several families, at the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorabake
from lorabake.cli import cli

from ..oracle import Shapes, write_lora

STEM = "unet.mid_block.attentions.0.transformer_blocks.0"
SHAPES: Shapes = {f"{STEM}.attn1.{p}": (300, 300) for p in ("to_q", "to_k", "to_v")}
OUT = "bundle.safetensors"
MAKE = ("make", "cat.safetensors", "ink.safetensors", "-o", OUT)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain content LoRA, and a style LoRA that has a LoHa and a LoKr layer."""
    monkeypatch.chdir(tmp_path)
    cat = tmp_path / "cat.safetensors"
    write_lora(cat, SHAPES, "kohya", 0, keep=1)
    save_file({key: tensor.half() for key, tensor in load_file(cat).items()}, cat)
    save_file(style(), tmp_path / "ink.safetensors")
    return tmp_path


def style() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    to_q, to_k = (f"{STEM}.attn1.{p}".replace(".", "_") for p in ("to_q", "to_k"))
    shapes = {
        f"lora_{to_q}.hada_w1_a": (300, 17), f"lora_{to_q}.hada_w1_b": (17, 300),
        f"lora_{to_q}.hada_w2_a": (300, 17), f"lora_{to_q}.hada_w2_b": (17, 300),
        f"lora_{to_k}.lokr_w1": (2, 2), f"lora_{to_k}.lokr_w2_a": (150, 1),
        f"lora_{to_k}.lokr_w2_b": (1, 150),
    }  # fmt: skip
    return {key: torch.randn(*shape, generator=g).half() for key, shape in shapes.items()}


def dense() -> tuple[Tensor, Tensor]:
    a, b, c, d, w1, w2_a, w2_b = (tensor.double() for tensor in style().values())
    return (a @ b) * (c @ d), torch.kron(w1, w2_a @ w2_b)


def run(*command: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == status, result.output
    return result


def made(*options: str) -> dict[str, Any]:
    return json.loads(run(*MAKE, "--method", "direct", "--json", *options).stdout)


def test_help_names_the_options() -> None:
    text = run("make", "--help").stdout
    assert "--svd-rank" in text
    assert "--family" in text


@pytest.mark.usefixtures("folder")
def test_a_rank_too_high_is_refused_with_advice() -> None:
    result = run(*MAKE, status=2)
    assert "Traceback" not in result.output
    assert "1 of its 2 layers (LoHa)" in result.stderr
    assert "would need rank 289" in result.stderr
    assert "--svd-rank 64" in result.stderr
    assert not Path(OUT).exists()
    assert "is not in the range" in run(*MAKE, "--svd-rank", "0", status=2).stderr


@pytest.mark.usefixtures("folder")
def test_the_report_says_what_it_costs() -> None:
    loha, lokr = dense()
    report = made("--svd-rank", "4")
    assert report["dtype"] == "float16"
    second, first = report["conversions"]
    assert {first["source"], second["source"]} == {"style"}
    assert (first["kind"], first["exact_rank"], first["rank"]) == ("LoHa", 289, 4)
    assert first["layers"] == [f"{STEM}.attn1.to_q"]
    spectrum = torch.linalg.svdvals(loha)
    assert first["error"] == pytest.approx(float(spectrum[4:].norm() / spectrum.norm()), rel=1e-4)
    assert first["norm"] == pytest.approx(float(loha.norm()), rel=1e-4)
    assert (second["kind"], second["exact_rank"], second["rank"]) == ("LoKr", 2, 2)
    assert second["error"] == 0
    lost = first["error"] * float(loha.norm()) / float(torch.cat([loha, lokr]).norm())
    text = run(*MAKE, "--svd-rank", "4", "--force").stdout
    assert "style: 1 LoHa, 1 LoKr layers converted, 1 of them to a lower rank" in text
    assert f"an error of {lost:.2g} of their norm overall" in text
    assert f"at worst {first['error']:.2g} ({STEM}.attn1.to_q, rank 289 → 4)" in text
    assert "content:" not in text


@pytest.mark.usefixtures("folder")
def test_what_is_exact_is_said_too() -> None:
    report = made("--svd-rank", "289")
    assert [done["error"] for done in report["conversions"]] == [0, 0]
    text = run(*MAKE, "--svd-rank", "289", "--force").stdout
    assert "style: 1 LoHa, 1 LoKr layers converted exactly" in text
    bundle = lorabake.load(OUT)
    for layer in bundle.manifest.layers:
        if layer.module.endswith("to_q"):
            down, up = bundle.factors(layer, 1)
            found = up.double() @ down.double()
            assert float((found - dense()[0]).norm() / dense()[0].norm()) < 1e-2


@pytest.mark.usefixtures("folder")
def test_a_bundle_is_verified_against_what_was_converted() -> None:
    report = made("--svd-rank", "4")
    result = run("verify", OUT, "--against", "cat.safetensors", "ink.safetensors", "--json")
    assert json.loads(result.stdout)["checks"]["compared"] == report["checks"]["compared"] == 5
    sources = lorabake.load(OUT).manifest.sources
    assert [source.svd_rank for source in sources] == [None, 4]
    other = {key: tensor * 2 if "hada_w1_a" in key else tensor for key, tensor in style().items()}
    save_file(other, "other.safetensors")
    run("verify", OUT, "--against", "cat.safetensors", "other.safetensors", status=2)


@pytest.mark.usefixtures("folder")
def test_a_plain_lora_is_not_touched() -> None:
    """A rank is no compression: only what is no plain LoRA is reduced."""
    save_file(load_file("cat.safetensors"), "ink.safetensors")
    assert made("--svd-rank", "1")["conversions"] == []
    plain = Path(OUT).read_bytes()
    made("--force")
    assert Path(OUT).read_bytes() == plain
    assert [source.svd_rank for source in lorabake.load(OUT).manifest.sources] == [None, None]


@pytest.mark.usefixtures("folder")
def test_a_family_in_doubt_is_said_and_can_be_decided() -> None:
    save_file(load_file("cat.safetensors"), "ink.safetensors")
    report = made()
    assert report["family"] == "sd15"
    assert report["rivals"] == ["sd2", "sdxl"]
    text = run(*MAKE, "--force").stdout
    assert "taken for sd15, but the layers fit sd2 and sdxl as well: --family decides" in text
    decided = made("--family", "sd2", "--force")
    assert (decided["family"], decided["rivals"]) == ("sd2", [])
    assert "--family" not in run(*MAKE, "--family", "sd2", "--force").stdout
    error = run(*MAKE, "--family", "flux", "--force", status=2).stderr
    assert "FLUX.1 has no such layers" in error
    error = run(*MAKE, "--family", "sdx", "--force", status=2).stderr
    assert "did you mean 'sdxl'?" in error
