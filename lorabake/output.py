"""Output files: refused before work starts, written beside the target, renamed when whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError
from .place import expanded, kind

_STALE = 3600.0
"""Seconds without a write after which a temporary file belongs to a process that was killed."""


def check(path: str | Path, *, force: bool = False, inputs: tuple[Path, ...] = ()) -> Path:
    """Refuse an output path that cannot or must not be written.

    Args:
        path: The wanted output file.
        force: Whether an existing file may be replaced.
        inputs: Files and folders that the work reads; what is there is never replaced.

    Returns:
        The path with symbolic links resolved.

    Raises:
        OutputError: The path is a folder, an input, not UTF-8, exists already, or its folder is
            missing or cannot be written to.
    """
    where = str(path)
    path = Path(path)
    if not path.name or where.endswith("/"):
        raise OutputError("is not a file name", where=where, advice="Name the file to write")
    if where != where.encode(errors="replace").decode():  # safetensors opens no such file
        raise OutputError("its name is not UTF-8", where=where, advice="Choose another name")
    try:
        target = path.resolve()
        folder, exists = target.parent, target.exists()
        taken = exists and any(_holds(p, target) for p in inputs)
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links, no permission
        raise _refused(error, path) from error
    if target.is_dir():
        raise OutputError("is a folder", where=where, advice="Name a file inside it")
    if not folder.is_dir():
        raise OutputError("its folder does not exist", where=where, advice=f"Create {path.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            "its folder cannot be written to", where=where, advice="Choose another place"
        )
    if exists and not target.is_file():
        raise OutputError("is not an ordinary file", where=where, advice="Choose another name")
    if taken:
        raise OutputError(
            "is one of the inputs or lies in one", where=where, advice="Choose another name"
        )
    if exists and not force:
        raise OutputError(
            "exists already", where=where, advice="Choose another name or replace it with --force"
        )
    return target


def _holds(source: Path, target: Path) -> bool:
    """Whether `target` is this file or lies in this folder."""
    source = expanded(source)
    if kind(source) == "folder":
        return target.is_relative_to(source.resolve())
    return kind(source) is not None and source.samefile(target)


def folder(path: Path) -> None:
    """Make a folder, and the ones above it, unless it is there.

    Raises:
        OutputError: A file is in the way, or the system refuses the folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(error, path) from error


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends without error.

    The rename is atomic: at any moment `path` is absent, old or whole. The temporary file
    (`.<name>.<8 hex>.tmp`) is removed after any exception; what a killed process left is removed
    by a later call for the same path.

    Raises:
        OutputError: The disk is full, or the system refuses the file.
    """
    prefix = f".{path.name.encode()[:80].decode(errors='ignore')}."  # systems limit bytes
    _sweep(path.parent, prefix)
    temporary = path.parent / f"{prefix}{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sweep(folder: Path, prefix: str) -> None:
    # Tidying up must not fail the work: the folder may be unreadable, another process faster.
    with contextlib.suppress(OSError):
        for left in folder.iterdir():
            ours = left.name.startswith(prefix) and left.name.endswith(".tmp")
            if ours and time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _refused(error: OSError | RuntimeError, path: Path) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(
        f"cannot be written ({reason})",
        where=str(path),
        advice="Free some space or choose another place",
    )
