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

_STALE = 3600.0
"""Seconds without a write after which a temporary file belongs to a process that was killed."""


def check(path: str | Path, *, force: bool = False, inputs: tuple[Path, ...] = ()) -> Path:
    """Refuse an output path that cannot or must not be written.

    Args:
        path: The wanted output file.
        force: Whether an existing file may be replaced.
        inputs: Files that the work reads, which are never replaced.

    Returns:
        The path with symbolic links resolved.

    Raises:
        OutputError: The path is a folder, an input, exists already, or its folder is missing or
            cannot be written to.
    """
    where = str(path)
    path = Path(path)
    if not path.name or where.endswith("/"):
        raise OutputError("is not a file name", where=where, advice="Name the file to write")
    try:
        target = path.resolve()
        folder, exists = target.parent, target.exists()
        taken = exists and any(p.exists() and p.samefile(target) for p in inputs)
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
        raise OutputError("is one of the inputs", where=where, advice="Choose another name")
    if exists and not force:
        raise OutputError(
            "exists already", where=where, advice="Choose another name or replace it with --force"
        )
    return target


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends without error.

    The rename is atomic: at any moment `path` is absent, old or whole. The temporary file
    (`.<name>.<8 hex>.tmp`) is removed after any exception; what a killed process left is removed
    by a later call for the same path.

    Raises:
        OutputError: The disk is full, or the system refuses the file.
    """
    prefix = f".{path.name[:80]}."
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
