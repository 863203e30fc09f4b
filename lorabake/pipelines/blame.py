"""Whose fault it is when diffusers or transformers raise something."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator

from ..errors import BaseModelError, LorabakeError, out_of_memory, shortened
from .quiet import quiet

_THEIRS, _OURS = ("diffusers", "transformers"), __name__.partition(".")[0]


@contextlib.contextmanager
def blame(what: str, *, where: str, advice: str) -> Generator[None]:
    """The two libraries inside, in silence; whatever they raise is the fault of what they got.

    They raise a dozen types for a damaged model, from each other's and the interpreter's depths.

    Args:
        what: Says what failed; the library's reason follows in brackets.
        where: The model.
        advice: What to do about it.

    Raises:
        BaseModelError: Anything but lorabake's own errors and defects, or a lack of memory.
    """
    try:
        with quiet():
            yield
    except LorabakeError:
        raise
    except Exception as error:
        if out_of_memory(error) or _own(error):
            raise
        raise BaseModelError(f"{what} ({_reason(error)})", where=where, advice=advice) from error


def _own(error: Exception) -> bool:
    """Whether it comes from our code inside of theirs, a hook for example: then it is a defect."""
    frames = traceback.walk_tb(error.__traceback__)
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
    entered = next((i for i, name in enumerate(names) if name in _THEIRS), len(names))
    return _OURS in names[entered:]


def _reason(error: Exception) -> str:
    """The first line of a message, and what it announces; with its type if it is hardly one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]).rstrip(".:")
    return shortened(line if " " in line else f"{type(error).__name__} {line}".strip(), 240)
