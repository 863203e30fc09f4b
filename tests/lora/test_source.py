from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from lorabake.errors import LoraFileError, UnsupportedLoraError
from lorabake.lora import LayerName, hub, read
from lorabake.lora.source import choose

from . import tables

NAME = LayerName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
TENSORS = tables.peft({NAME: tables.Known(torch.ones(2, 4), torch.ones(4, 2))})


def test_a_file(tmp_path: Path) -> None:
    path = tables.save(tmp_path / "cat.v2.safetensors", TENSORS)
    for source in (path, str(path)):
        lora = read(source)
        assert lora.provenance.name == "cat.v2"
        assert lora.provenance.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_lora_weights.safetensors", "other.safetensors"],
        ["adapter_model.safetensors", "other.safetensors"],
        ["only.safetensors", "README.md"],
    ],
)
def test_a_folder(names: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    tables.save(folder / names[0], TENSORS)
    for name in names[1:]:
        (folder / name).touch()
    assert read(folder).provenance.name == "cat"


def test_a_folder_with_several_lists_them() -> None:
    with pytest.raises(LoraFileError) as caught:
        choose([f"step-{i}.safetensors" for i in range(1, 8)], "out")
    assert str(caught.value) == (
        "out: holds 7 .safetensors files: step-1.safetensors, step-2.safetensors, "
        "step-3.safetensors, step-4.safetensors, step-5.safetensors and 2 more. "
        "Name one of them, for example out/step-1.safetensors"
    )


def test_a_folder_without_any() -> None:
    with pytest.raises(LoraFileError, match=r"out: holds no \.safetensors file"):
        choose(["README.md"], "out")
    with pytest.raises(UnsupportedLoraError, match=r"pytorch_lora_weights\.bin: .*pickle"):
        choose(["README.md", "pytorch_lora_weights.bin"], "out")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".CKPT"])
def test_pickles_are_not_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lora{suffix}"
    path.write_bytes(b"\x80\x04this would run")
    path.chmod(0)
    with pytest.raises(UnsupportedLoraError, match=r"so it is not opened\. Convert it"):
        read(path)


@pytest.mark.parametrize(
    "source",
    [
        "nowhere.safetensors", "./a/b", "../a/b.safetensors", "/a/b",
        "~nosuchuser/cat.safetensors", "a" * 300 + ".safetensors", "a" * 5000, "a\0b",
    ],
)  # fmt: skip
def test_a_missing_file(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (source, Path(source)):
        with pytest.raises(LoraFileError, match=r"does not exist\. Give a \.safetensors") as caught:
            read(given)
        assert len(str(caught.value)) < 1000


def test_a_missing_file_in_a_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    for source in ("loras/cat", "loras/style/cat.safetensors", "elsewhere/cat.safetensors"):
        with pytest.raises(LoraFileError, match="does not exist"):
            read(source)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "x.safetensors"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
        (lambda path: path.symlink_to(path), "is a link to nothing"),
    ],
)
def test_not_a_regular_file(
    name: str, make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    for source in (tmp_path, path) if make is not Path.mkdir else (tmp_path,):
        with pytest.raises(LoraFileError, match=rf"{name}: {words}\. Give a"):
            read(source)


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    tables.save(tmp_path / "lora.safetensors", TENSORS).rename(path)
    for source in (path, tmp_path):
        with pytest.raises(LoraFileError, match=r"not UTF-8 text.*Rename it$"):
            read(source)


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    path = tables.save(tmp_path / "lora.safetensors", TENSORS)
    monkeypatch.setattr("lorabake.lora.file.safe_open", refuse)
    with pytest.raises(LoraFileError, match=r"cannot be read \(Permission denied\)\. Check its"):
        read(path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(LoraFileError, match=r"cannot be listed \(Permission denied\)\. Check its"):
        read(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(cache: Path, repo: str, *files: str) -> None:
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for file in files:
        path = snapshot / file
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.save(path, TENSORS)


def test_a_hub_id_from_the_cache(cache: Path) -> None:
    put(cache, "user/cat", "pytorch_lora_weights.safetensors", "old/cat.safetensors")
    assert read("user/cat").provenance.name == "user/cat"
    assert read("user/cat/old/cat.safetensors").layers.keys() == {NAME}


def test_a_hub_id_with_several_files(cache: Path) -> None:
    put(cache, "user/cats", "a.safetensors", "b.safetensors")
    with pytest.raises(LoraFileError, match=r"user/cats: holds 2 .*a\.safetensors, b\.safetensors"):
        read("user/cats")


@pytest.mark.parametrize("source", ["user/dog", "user/dog/dog.safetensors"])
def test_a_hub_id_that_cannot_be_reached(source: str, cache: Path) -> None:
    with pytest.raises(LoraFileError) as caught:
        read(source)
    message = str(caught.value)
    assert message.startswith(f"{source}: is no local file or folder, and cannot be had from the")
    assert "\n" not in message


def test_a_pickle_on_the_hub(cache: Path) -> None:
    with pytest.raises(UnsupportedLoraError, match="pickle"):
        hub.fetch("user/cat", "cat.ckpt")
