from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorabake
from lorabake import lora
from lorabake.bundle import compare, verify
from lorabake.errors import BundleError, VerifyError

from ..oracle import write_lora
from .test_write import SHAPES


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path, Path]:
    content, style = tmp_path / "cat.safetensors", tmp_path / "ink.safetensors"
    write_lora(content, SHAPES, "kohya", 3)
    write_lora(style, SHAPES, "peft", 4)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(content, style, out, method="direct", content_strength=0.6, style_strength=2.0)
    return content, style, out


def resave(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write other tensors under the same metadata, as another tool would."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def test_a_bundle_by_itself(paths: tuple[Path, Path, Path]) -> None:
    checks = verify(paths[2])
    assert checks.compared == 0
    assert checks.layers == len(lorabake.load(paths[2]).manifest.layers)


def test_against_its_sources(paths: tuple[Path, Path, Path]) -> None:
    content, style, out = paths
    checks = verify(out, (content, style))
    expected = sum(len(lora.read(path).layers) for path in (content, style))
    assert checks.compared == expected
    assert checks.worst_error <= 1e-7
    again = {k: v.clone() for k, v in load_file(out).items()}
    resave(out, again)
    assert verify(out, (content, style)).to_json() == checks.to_json()


def test_against_others(paths: tuple[Path, Path, Path], tmp_path: Path) -> None:
    content, style, out = paths
    with pytest.raises(BundleError, match="layers or ranks are not those"):
        verify(out, (style, content))
    changed = load_file(content)
    key = next(key for key in changed if key.endswith("lora_up.weight"))
    changed[key] *= 1.001
    save_file(changed, other := tmp_path / "other.safetensors")
    with pytest.raises(BundleError, match=r"differs from the content LoRA by 0\.001 of its norm"):
        verify(out, (other, style))


def test_a_flipped_bit(paths: tuple[Path, Path, Path]) -> None:
    raw = bytearray(paths[2].read_bytes())
    raw[-3] ^= 1
    paths[2].write_bytes(raw)
    with pytest.raises(BundleError, match="digest differs"):
        verify(paths[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_under_a_right_digest(
    paths: tuple[Path, Path, Path], value: float
) -> None:
    out = paths[2]
    old = lorabake.load(out).manifest.digest
    raw = bytearray(out.read_bytes())
    raw[-4:] = struct.pack("<f", value)
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    out.write_bytes(raw.replace(old.encode(), hashlib.sha256(data).hexdigest().encode()))
    with pytest.raises(BundleError, match="NaN or infinity: lora_unet"):
        verify(out)


def test_what_was_written_wrong_is_found(paths: tuple[Path, Path, Path]) -> None:
    content, style, out = paths
    pairs = lora.pair(lora.read(content), lora.read(style))
    with pytest.raises(VerifyError, match="more than rounding explains"):
        compare(out, pairs)  # without the strengths


def test_names_that_lead_elsewhere(paths: tuple[Path, Path, Path]) -> None:
    out = paths[2]
    raw = out.read_bytes()
    # Same length, so that the header stays whole: a block that the manifest does not mean.
    wrong = raw.replace(b"lora_unet_mid_block_resnets_0", b"lora_unet_mid_block_resnets_1")
    assert wrong != raw
    out.write_bytes(wrong)
    with pytest.raises(BundleError, match="disagree about"):
        verify(out)
