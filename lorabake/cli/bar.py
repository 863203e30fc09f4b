"""Progress on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator

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

    shown, current = "", None

    def show(stage: str, done: int, total: int) -> None:
        nonlocal shown, current
        if current is None or stage != shown:
            close()
            shown, current = stage, tqdm(desc=stage, total=total, leave=False)
        current.update(done - current.n)

    def close() -> None:
        if current is not None:
            current.close()

    try:
        yield show
    finally:
        close()
