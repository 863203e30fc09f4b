from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from lorabake import output
from lorabake.errors import OutputError


def _fail_halfway(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half")
    raise error


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_whole_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    with output.replacing(target) as file:
        file.write(b"new")
        assert not target.exists()
        assert leftovers(tmp_path)
    assert target.read_bytes() == b"new"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), output.replacing(target) as file:
        _fail_halfway(file, error)
    assert target.read_bytes() == b"old"
    assert not leftovers(tmp_path)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 kB, which looks like a full disk to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    with pytest.raises(OutputError, match="cannot be written"), output.replacing(target) as file:
        file.write(bytes(100_000))
    assert list(tmp_path.iterdir()) == []


def test_the_usual_permissions(tmp_path: Path) -> None:
    with output.replacing(tmp_path / "x.bin") as file:
        file.write(b"x")
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "x.bin").stat().st_mode == plain.stat().st_mode


def test_only_stale_leftovers_are_swept(tmp_path: Path) -> None:
    old, fresh, other = (
        tmp_path / name for name in (".x.bin.00000000.tmp", ".x.bin.11111111.tmp", "x.bin.tmp")
    )
    for path in (old, fresh, other):
        path.touch()
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    os.utime(other, (hours_ago, hours_ago))
    with output.replacing(tmp_path / "x.bin") as file:
        file.write(b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", fresh.name, other.name}


def test_the_longest_name_that_the_system_takes(tmp_path: Path) -> None:
    path = output.check(tmp_path / ("🍞" * 62))
    with output.replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "x.bin")
    assert output.check(tmp_path / "link") == tmp_path / "real" / "x.bin"


def test_what_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken.bin"
    taken.write_bytes(b"old")
    (tmp_path / "linked.bin").hardlink_to(taken)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    refused = {
        tmp_path: "is a folder",
        tmp_path / "no" / "x.bin": "folder does not exist",
        taken / "x.bin": "folder does not exist",
        tmp_path / ("x" * 300): "cannot be written",
        tmp_path / "pipe": "not an ordinary file",
        taken: "exists already",
    }
    for path, message in refused.items():
        with pytest.raises(OutputError, match=message):
            output.check(path)
    for path in ("", ".", "/", f"{tmp_path}/x/"):
        with pytest.raises(OutputError):
            output.check(path)
    with pytest.raises(OutputError):
        output.check(tmp_path / "loop")
    assert output.check(taken, force=True) == taken
    with pytest.raises(OutputError, match="one of the inputs"):
        output.check(tmp_path / "linked.bin", force=True, inputs=(taken,))
    with pytest.raises(OutputError, match="lies in one"):
        output.check(taken, force=True, inputs=(tmp_path,))
    assert output.check(tmp_path / "new.bin", inputs=(tmp_path,)) == tmp_path / "new.bin"
