"""Progress on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Bar:
    """A callback `(stage, done, total)` that draws one tqdm bar per stage.

    Args:
        shown: Whether anything is drawn.
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown, self._stage, self._detail = shown, "", ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Draw how far a stage is."""
        if not self._shown:
            return
        from tqdm import tqdm

        if self._bar is None or stage != self._stage:
            self.close()
            self._stage, self._bar = stage, tqdm(desc=stage, total=total, leave=False)
        self._bar.set_postfix_str(self._detail, refresh=False)
        self._bar.update(done - self._bar.n)

    def detail(self, figures: str) -> None:
        """Figures to draw beside the bar from its next step on."""
        self._detail = figures

    def close(self) -> None:
        """Take the bar away."""
        self._detail = ""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def bar(*, quiet: bool) -> Generator[Bar]:
    """A bar for each stage inside; nothing with `quiet` or where stderr is not a terminal."""
    found = Bar(shown=not quiet and sys.stderr.isatty())
    try:
        yield found
    finally:
        found.close()
