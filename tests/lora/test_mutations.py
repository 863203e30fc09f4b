"""Damaged files of every dialect: one error each, which names the tensor and the dialect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorabake.errors import LoraFileError
from lorabake.lora import dialects, read

from .layouts import LAYOUTS
from .mutations import small

Change = Callable[[dict[str, Tensor], str, str], str]
"""Damages a file at its down and up factor of these keys; returns what the error has to name."""

ONE = {layout.dialect: name for name, layout in reversed(LAYOUTS.items())}


def _missing(tensors: dict[str, Tensor], down: str, up: str) -> str:
    del tensors[up]
    return down


def _other_rank(tensors: dict[str, Tensor], down: str, up: str) -> str:
    tensors[down] = torch.ones(tensors[down].shape[0] + 1, *tensors[down].shape[1:])
    return down


def _alpha(tensors: dict[str, Tensor], down: str, up: str) -> str:
    key = f"{_module(down)}.alpha"
    tensors[key] = torch.ones(2)
    return key


def _foreign(tensors: dict[str, Tensor], down: str, up: str) -> str:
    tensors["model.embed_tokens.weight"] = torch.ones(3)
    return "model.embed_tokens.weight"


def _module(key: str) -> str:
    for ending in (".lora_A", ".lora_down", ".lora.down", "_lora.down", ".down"):
        if ending in key:
            return key[: key.index(ending)]
    raise ValueError(key)


def pair_of(tensors: dict[str, Tensor]) -> tuple[str, str]:
    """The last layer's down and up factor."""
    down = sorted(key for key in tensors if "lora_A." in key or "down." in key.rpartition("_")[2])
    key = [k for k in down if k.endswith("weight")][-1]
    up = key.replace("lora_A", "lora_B").replace("down.weight", "up.weight")
    return key, up


@pytest.mark.parametrize("change", [_missing, _other_rank, _alpha, _foreign])
@pytest.mark.parametrize("dialect", [dialect.name for dialect in dialects.MEMBERS])
def test_what_is_wrong_is_named(dialect: str, change: Change, tmp_path: Path) -> None:
    tensors = small(ONE[dialect])
    if change is _alpha and dialect == "xlabs":
        pytest.skip("the style has no alpha")
    named = change(tensors, *pair_of(tensors))
    message = refusal(tmp_path / "lora.safetensors", tensors)
    assert named in message
    assert dialect in message


@pytest.mark.parametrize("dialect", [dialect.name for dialect in dialects.MEMBERS])
def test_a_file_that_ends_too_early(dialect: str, tmp_path: Path) -> None:
    path, tensors = tmp_path / "lora.safetensors", small(ONE[dialect])
    save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(LoraFileError) as caught:
        read(path)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    last = max(header, key=lambda key: header[key].get("data_offsets", [0, 0])[1])
    assert f"it ends before 1 of its {len(tensors)} tensors, the first of them {last}" in str(
        caught.value
    )
    assert f"style of {dialect}" in str(caught.value)


@pytest.mark.parametrize("dialect", [dialect.name for dialect in dialects.MEMBERS])
def test_a_mixture_names_both_dialects(dialect: str, tmp_path: Path) -> None:
    other = "PEFT" if dialect != "PEFT" else "kohya for FLUX"
    tensors = small(ONE[dialect]) | small(ONE[other])
    message = refusal(tmp_path / "lora.safetensors", tensors)
    for name in (dialect, other):
        member = next(member for member in dialects.MEMBERS if member.name == name)
        assert f"{name} ({member.sign(tensors)})" in message


def refusal(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, path)
    with pytest.raises(LoraFileError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ten_thousand_damaged_files() -> None:
    """In a process that may take 200 MB and one and a half times the file, see `mutations`."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.lora.mutations", "10000"],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    outcomes = json.loads(ran.stdout)
    # Both must be common, or the files are all alike.
    assert min(outcomes.values()) > 1000
    assert sum(outcomes.values()) >= 10_000
