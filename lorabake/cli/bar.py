"""Progress on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from typing import Any

Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def bar(*, quiet: bool) -> Generator[Progress]:
    """A callback `(stage, done, total)` that draws one tqdm bar per stage.

    Nothing is drawn with `quiet` or where stderr is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from tqdm import tqdm

    current: Any = None

    def show(stage: str, done: int, total: int) -> None:
        nonlocal current
        if current is None or current.desc != f"{stage}: ":
            if current is not None:
                current.close()
            current = tqdm(desc=stage, total=total, leave=False)
        current.update(done - current.n)

    try:
        yield show
    finally:
        if current is not None:
            current.close()
