from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorabake.errors import BundleError, OverrideError
from lorabake.runtime import read

from .naive_bundle import Spec, gates, write

SPECS = [
    Spec("text_encoder", "0", (2, 1), {"gates": [1.0, 1.0]}),
    Spec("unet", "0", (2, 3), {"scores": [1.0, 1.0]}),
    Spec("unet", "1", (0, 3), {"gates": [1.0, 1.0]}),
    Spec("unet", "2", (4, 0), {"gates": [1.0, 1.0]}),
    Spec("unet", "3", (1, 1), {"select": "0110100"}),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    root = nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 4), nn.Conv2d(3, 7, (3, 2)), nn.Linear(2, 3))
    return write(tmp_path / "b.safetensors", SPECS, {"unet": root, "text_encoder": root})


def test_factors(path: Path) -> None:
    bundle = read(path, verify=True)
    for layer, spec in zip(bundle.manifest.layers, SPECS, strict=True):
        for i, delta in enumerate(spec.deltas):
            down, up = bundle.factors(layer, i)
            assert down.shape[0] == up.shape[1] == spec.ranks[i]
            assert torch.equal((up.flatten(1) @ down.flatten(1)).reshape(delta.shape), delta)
        assert bundle.shape(layer) == spec.deltas[0].shape
        assert bundle.factors(layer, 0, "meta", torch.bfloat16)[1].dtype == torch.bfloat16


def test_selection(path: Path) -> None:
    bundle = read(str(path))
    layers = bundle.manifest.layers
    for steps in (1, 4, 25, 50):
        rows = [bundle.select(layer, steps) for layer in layers]
        assert rows[0] == [None] * steps
        assert rows[1] == [gates(SPECS[1], i, steps).index(1.0) for i in range(steps)]
        assert rows[2] == [1] * steps
        assert rows[3] == [0] * steps
        assert rows[4] == [gates(SPECS[4], i, steps).index(1.0) for i in range(steps)]
        picture = bundle.selection(steps)
        assert picture.dtype == torch.bool
        assert picture.tolist() == [[choice == 1 for choice in row] for row in rows]
    assert bundle.selection(steps=4, gamma=10.0)[1].all()
    assert not bundle.selection(steps=4, gamma=1e-3)[1].any()


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "5"])
def test_steps_out_of_range(path: Path, steps: Any) -> None:
    with pytest.raises(OverrideError, match="steps"):
        read(path).selection(steps)


def test_no_selection_in_a_direct_merge(path: Path, tmp_path: Path) -> None:
    root = nn.Sequential(nn.Linear(6, 5))
    specs = [Spec("unet", "0", (2, 3), {"gates": [1.0, 1.0]})]
    direct = read(write(tmp_path / "d.safetensors", specs, {"unet": root}, method="direct"))
    assert direct.select(direct.manifest.layers[0], 3) == [None] * 3
    with pytest.raises(OverrideError, match="direct applies the same all the time"):
        direct.selection(50)


@pytest.mark.parametrize("name", ["x" * 5000, "~nosuchuser/x", "a\0b", "", "x/" * 2500])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(BundleError, match=r"cannot be opened|not a regular file") as caught:
        read(name)
    assert len(str(caught.value)) < 700


def resaved(edit: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Any:
    """The file after an edit of its tensors and manifest, as another tool might save it."""

    def spoil(path: Path) -> None:
        tensors = load_file(path)
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
        manifest = json.loads(header["__metadata__"]["lorabake"])
        edit(tensors, manifest)
        save_file(tensors, path, {"lorabake": json.dumps(manifest)})

    return spoil


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


def huge_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 30_000_000) + b"{")
        file.truncate(40_000_000)


def stripped(path: Path) -> None:
    save_file(load_file(path), path)


def no_lora(path: Path) -> None:
    save_file({"weight": torch.ones(2, 2)}, path, {"a": "b"})


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (Path.unlink, "cannot be opened"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "text": (lambda path: path.write_text("<html>no such page</html>"), "not a whole safetensors"),
    "pickle": (pickled, "not a whole safetensors file"),
    "truncated": (cut, "not a whole safetensors file"),
    "trailing": (extend, "not a whole safetensors file"),
    "huge header": (huge_header, "exceeds the limit of 25000000"),
    "stripped": (stripped, "this is an ordinary LoRA, not a bundle.*stripped its metadata"),
    "no lora": (no_lora, "this is something else, not a bundle"),
    "not json": (lambda path: save_file({"a": torch.ones(1)}, path, {"lorabake": "x"}), "JSON"),
    "missing": (resaved(lambda t, _: t.pop("layer1.lora_A.weight")), "missing: layer1.lora_A"),  # type: ignore[arg-type, return-value] - the result of pop is not used
    "extra": (
        resaved(lambda t, _: t.update(alpha=torch.ones(1))),
        "not in the manifest: alpha",
    ),
    "ranks": (
        resaved(lambda _, m: m["layers"][1].update(ranks=[5, 5])),
        r"unet.0 .*too small for the ranks \[5, 5\]",
    ),
    "no factors": (
        resaved(lambda t, _: t.update({"layer1.lora_B.weight": torch.ones(5, 3)})),
        "unet.0 .*no low-rank factors",
    ),
    "three axes": (
        resaved(lambda t, _: t.update({"layer1.lora_A.weight": torch.ones(7, 3, 1)})),
        "unet.0 .*no low-rank factors",
    ),
    "uneven": (
        resaved(
            lambda t, _: t.update(
                {"layer1.lora_A.weight": torch.ones(9, 6), "layer1.lora_B.weight": torch.ones(5, 9)}
            )
        ),
        "other layers of unet have",
    ),
    "integers": (
        resaved(lambda t, _: t.update({k: v.to(torch.int8) for k, v in t.items()})),
        "is I8, not F32",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_reader_refuses(name: str, path: Path) -> None:
    spoil, message = BAD[name]
    spoil(path)
    with pytest.raises(BundleError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digest(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    bundle = read(path)
    with pytest.raises(BundleError, match="digest differs"):
        bundle.verify()
    with pytest.raises(BundleError, match="digest differs"):
        read(path, verify=True)


def test_any_cut_is_noticed(path: Path) -> None:
    raw = path.read_bytes()
    for size in {*range(0, 64), *range(0, len(raw), 97), len(raw) - 1}:
        path.write_bytes(raw[:size])
        with pytest.raises(BundleError):
            read(path)


@pytest.mark.filterwarnings("ignore:the bundle has format")
def test_a_flipped_bit_never_crashes(path: Path) -> None:
    """Reading either works or raises BundleError, wherever the header or manifest is damaged."""
    raw = path.read_bytes()
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    for place in range(0, size, 11):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << (place % 7)
        path.write_bytes(damaged)
        try:
            read(path).selection(3)
        except BundleError as error:
            assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
