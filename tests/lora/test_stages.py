"""Two files for two denoisers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from lorabake.errors import LoraFileError
from lorabake.lora import LayerName, families, read

from . import tables

LAYERS = {
    LayerName("transformer", "blocks.0.attn1.to_q"): (6, 6),
    LayerName("transformer", "blocks.1.ffn.net.2"): (6, 12),
}
SECOND = {LayerName("transformer_2", name.module): name for name in LAYERS}


def folder(tmp_path: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        known = tables.random_lora(LAYERS, seed, ranks=(2,), alphas=(None,))
        tables.save(tmp_path / name, tables.peft(known), trigger_words=f"word{seed}, both")
    return tmp_path


def test_high_and_low_noise(tmp_path: Path) -> None:
    """Whatever the listing's order; `low` sorts after `high`, `LOW` before it."""
    source = folder(tmp_path, "wan_High_noise-v2.safetensors", "wan_LOW_noise-v2.safetensors")
    lora = read(source)
    assert lora.family == "wan22"
    assert list(lora.layers) == [*LAYERS, *SECOND]
    high, low = (tables.random_lora(LAYERS, seed, ranks=(2,), alphas=(None,)) for seed in (0, 1))
    for name, layer in lora.layers.items():
        known = low[SECOND[name]] if name in SECOND else high[name]
        torch.testing.assert_close(layer.delta(torch.float64), known.delta)
    files = sorted(source.iterdir(), key=lambda path: "High" not in path.name)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert lora.provenance.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert lora.provenance.name == tmp_path.name
    assert lora.provenance.trigger_words == ("word0", "both", "word1")
    assert read(source, family="wan22").layers.keys() == lora.layers.keys()
    keys = [families.get("wan22").keys(name)[0] for name in lora.layers]
    assert keys == [f"{name}.lora_A.weight" for name in lora.layers]


@pytest.mark.parametrize(
    "names",
    [("a.safetensors", "b.safetensors"), ("high.safetensors", "low.safetensors", "x.safetensors"),
     ("highlow.safetensors", "low.safetensors")],
)  # fmt: skip
def test_other_folders_are_not_taken_for_them(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match=f"holds {len(names)} .safetensors files"):
        read(folder(tmp_path, *names))


def test_one_of_two_files_can_be_named(tmp_path: Path) -> None:
    source = folder(tmp_path, "high.safetensors", "low.safetensors")
    assert read(source / "low.safetensors").layers.keys() == LAYERS.keys()


def test_only_transformers_come_in_two(tmp_path: Path) -> None:
    known = tables.random_lora(tables.model("tiny sd15"), ranks=(1,), alphas=(None,))
    for name in ("high", "low"):
        tables.save(tmp_path / f"{name}.safetensors", tables.peft(known))
    with pytest.raises(LoraFileError, match="high has layers of text_encoder, unet"):
        read(tmp_path)
