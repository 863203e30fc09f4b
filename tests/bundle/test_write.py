"""The bytes of a bundle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lorabake
from lorabake.bundle.header import Entry, head

from ..oracle import Shapes, sha256, write_lora

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
SHAPES: Shapes = {
    f"{BLOCK}.attn1.to_q": (16, 16),
    f"{BLOCK}.attn2.to_k": (16, 24),
    "unet.mid_block.resnets.0.conv1": (16, 16, 3, 3),
    "unet.up_blocks.0.resnets.0.conv1": (16, 16, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (24, 24),
    "text_encoder.text_model.encoder.layers.1.self_attn.out_proj": (24, 24),
}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "cat.safetensors", tmp_path / "ink.safetensors")
    for seed, path in enumerate(paths):
        write_lora(path, SHAPES, "kohya", seed + 3, keep=0.9)
    return paths


@pytest.fixture
def bundle(paths: tuple[Path, Path], tmp_path: Path) -> Path:
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*paths, out)
    return out


def parts(path: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """Header as JSON, header as bytes, data section."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 : 8 + size], raw[8 + size :]


def is_sorted(value: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == sorted(value) and all(map(is_sorted, value.values()))
    return True


def test_the_head_is_canonical(bundle: Path) -> None:
    header, raw, data = parts(bundle)
    assert is_sorted(header)
    assert len(raw) % 8 == 0
    assert raw.rstrip(b" ").decode("ascii") == json.dumps(header, separators=(",", ":"))
    header.pop("__metadata__")
    end = 0
    for entry in header.values():
        assert entry["data_offsets"][0] == end
        end = entry["data_offsets"][1]
    assert end == len(data)


def test_the_digest_is_of_the_data(bundle: Path) -> None:
    header, _, data = parts(bundle)
    manifest = json.loads(header["__metadata__"]["lorabake"])
    assert manifest["digest"] == hashlib.sha256(data).hexdigest()


def test_one_rank_per_component_and_not_one_extra_tensor(bundle: Path) -> None:
    manifest = lorabake.load(bundle).manifest
    tensors = load_file(bundle)
    keys = {key for layer in manifest.layers for key in (layer.down, layer.up)}
    assert set(tensors) == keys
    for component in ("unet", "text_encoder"):
        layers = [layer for layer in manifest.layers if layer.component == component]
        ranks = {tensors[layer.down].shape[0] for layer in layers}
        ranks |= {tensors[layer.up].shape[1] for layer in layers}
        assert ranks == {max(sum(layer.ranks) for layer in layers)}


def test_other_tools_find_their_metadata(bundle: Path, tmp_path: Path) -> None:
    with safe_open(bundle, "pt") as file:
        found = file.metadata()
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.merged_from"] == "cat, ink"
    assert found["modelspec.title"] == "cat + ink (klora)"
    ranks = [
        t.shape[0]
        for k, t in load_file(bundle).items()
        if k.startswith("lora_unet") and "down" in k
    ]
    assert found["ss_network_dim"] == str(ranks[0])
    assert "lora_adapter_metadata" not in found
    assert str(tmp_path) not in json.dumps(found)


def test_trigger_words_and_licences_travel(paths: tuple[Path, Path], tmp_path: Path) -> None:
    notes = [
        {"modelspec.trigger_phrase": "sks cat", "modelspec.license": "CC-BY-4.0"},
        {"modelspec.trigger_phrase": 'ink "wash"', "modelspec.license": "MIT"},
    ]
    for path, note in zip(paths, notes, strict=True):
        save_file(load_file(path), path, note)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*paths, out)
    with safe_open(out, "pt") as file:
        found = file.metadata()
    assert found["modelspec.trigger_phrase"] == 'sks cat, ink "wash"'
    assert found["modelspec.license"] == "CC-BY-4.0, MIT"
    sources = lorabake.load(out).manifest.sources
    assert [s.trigger_words for s in sources] == [("sks cat",), ('ink "wash"',)]
    assert [s.sha256 for s in sources] == [sha256(path) for path in paths]


def test_a_source_named_like_the_digest_does_not_fool_the_writer(tmp_path: Path) -> None:
    name = '"digest":"' + "0" * 64
    paths = (tmp_path / f"{name}.safetensors", tmp_path / 'a"b\\.safetensors')
    for seed, path in enumerate(paths):
        write_lora(path, SHAPES, "kohya", seed, keep=1.0)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*paths, out)
    assert lorabake.load(out).manifest.sources[0].name == name
    lorabake.load(out).verify()


@pytest.mark.parametrize(
    ("dtypes", "wanted", "stored"),
    [
        (("float16", "float16"), None, "float16"),
        (("float16", "bfloat16"), None, "float32"),
        (("bfloat16", "bfloat16"), None, "bfloat16"),
        (("float32", "float32"), "bfloat16", "bfloat16"),
        (("float32", "float16"), "float16", "float16"),
    ],
)
def test_dtype(
    paths: tuple[Path, Path],
    tmp_path: Path,
    dtypes: tuple[str, str],
    wanted: str | None,
    stored: str,
) -> None:
    for path, dtype in zip(paths, dtypes, strict=True):
        save_file({k: v.to(getattr(torch, dtype)) for k, v in load_file(path).items()}, path)
    out = tmp_path / "bundle.safetensors"
    report = lorabake.make(*paths, out, dtype=wanted)
    assert {t.dtype for t in load_file(out).values()} == {getattr(torch, stored)}
    assert report.dtype == stored
    assert report.checks.worst_error <= torch.finfo(getattr(torch, stored)).eps


def test_same_bytes_in_any_process(paths: tuple[Path, Path], tmp_path: Path) -> None:
    """Here and where sets and strings have other hashes, in other folders."""
    code = "import sys, lorabake; lorabake.make(*sys.argv[1:4]); print(hash('lora'))"
    here, there = tmp_path / "here.safetensors", tmp_path / "run" / "there.safetensors"
    lorabake.make(*paths, here)
    there.parent.mkdir()
    copies = [there.parent / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, copies), str(there)],
        env={**os.environ, "PYTHONHASHSEED": "77"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(ran.stdout) != hash("lora")
    assert here.read_bytes() == there.read_bytes()


def test_a_name_that_is_not_utf8_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(head([Entry("x", (0,))], torch.float32, {"name": "a\udce9b"}))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"name": "a?b"}
