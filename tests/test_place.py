from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorabake.place import expanded, kind


def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    found = [kind(f"~/{name}") for name in ("", "file", "link", "pipe", "nothing")]
    assert found == ["folder", "file", "file", "other", None]
    assert expanded("~/file") == tmp_path / "file"


def test_names_that_make_pathlib_raise(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("x" * 5000, "a\0b", "~nosuchuser/x", tmp_path / "loop", tmp_path / "dangling", ""):
        assert kind(name) is None
        expanded(name)
