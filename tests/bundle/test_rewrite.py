"""A bundle under another manifest: canonical bytes, whatever the source was written by."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from lorabake import runtime
from lorabake.bundle.rewrite import check_rewritable, rewrite
from lorabake.errors import BundleError

from ..runtime.naive_bundle import Spec, write


def source(path: Path, **edit: object) -> runtime.Bundle:
    """Eleven layers that apply both sources."""
    root = torch.nn.Sequential(*(torch.nn.Linear(3 + i, 5) for i in range(11)))
    specs = [Spec("unet", str(i), (1 + i % 2, 2), {"gates": [1.0, 0.5]}) for i in range(11)]
    return runtime.read(write(path, specs, {"unet": root}, **edit))  # pyright: ignore[reportArgumentType] - whatever the manifest has


def shuffled(path: Path) -> runtime.Bundle:
    """The same with its tensors in another order, as other tools may save them."""
    raw = path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:size])
    texts = header.pop("__metadata__")
    table: dict[str, Any] = {}
    data = b""
    for key in sorted(header, key=lambda key: (len(key), key[::-1])):
        start, end = header[key]["data_offsets"]
        table[key] = header[key] | {"data_offsets": [len(data), len(data) + end - start]}
        data += raw[size + start : size + end]
    manifest = json.loads(texts["lorabake"]) | {"digest": hashlib.sha256(data).hexdigest()}
    text = json.dumps(table | {"__metadata__": {"lorabake": json.dumps(manifest), "x": "y"}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data)
    return runtime.read(path, verify=True)


def test_tensors_are_the_same_and_bytes_canonical(tmp_path: Path) -> None:
    found = shuffled(source(tmp_path / "a", dtype=torch.bfloat16).path)
    file = io.BytesIO()
    digest = rewrite(file, found.path, replace(found.manifest, method="other"))
    raw = file.getvalue()
    size = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:size])
    manifest = json.loads(header.pop("__metadata__")["lorabake"])
    assert digest == manifest["digest"] == hashlib.sha256(raw[size:]).hexdigest()
    assert digest != found.manifest.digest
    assert manifest["method"] == "other"
    assert size % 8 == 0
    starts = [entry["data_offsets"][0] for entry in header.values()]
    assert list(header) == sorted(header)
    assert starts == sorted(starts)
    before, after = load_file(found.path), load(raw)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    (tmp_path / "b").write_bytes(raw)
    again = io.BytesIO()
    assert rewrite(again, tmp_path / "b", replace(found.manifest, method="other")) == digest
    assert again.getvalue() == raw
    assert runtime.read(tmp_path / "b", verify=True).manifest.layers == found.manifest.layers


def test_what_no_bundle_is_written_in(tmp_path: Path) -> None:
    check_rewritable(source(tmp_path / "a"))
    with pytest.raises(BundleError, match="its tensors are float64; a bundle is written in one"):
        check_rewritable(source(tmp_path / "b", dtype=torch.float64))
    with pytest.raises(BundleError, match=r"family 'sd51' \(did you mean 'sd15'"):
        check_rewritable(source(tmp_path / "c", family="sd51"))
