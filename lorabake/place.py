"""Where a name leads: questions to the file system that no name makes fail.

Users and strangers' links give names that are too long, hold a NUL, start with `~nobody` or lead
to themselves; pathlib raises for some of these and answers for others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal


def expanded(name: str | Path) -> Path:
    """The path with `~` resolved; as it is where there is no such user."""
    return Path(os.path.expanduser(name))  # noqa: PTH111


def kind(name: str | Path) -> Literal["file", "folder", "other"] | None:
    """What is there, links followed and `~` resolved; None if nothing is."""
    try:
        mode = os.stat(os.path.expanduser(name)).st_mode  # noqa: PTH111, PTH116
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"
