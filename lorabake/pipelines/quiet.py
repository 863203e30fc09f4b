"""Silence of diffusers and transformers while they load."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No warnings, log lines and loading bars of the two libraries inside; as it was afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for log in (diffusers_logging, transformers_logging):
            undo.callback(log.set_verbosity, log.get_verbosity())
            if log.is_progress_bar_enabled():
                undo.callback(log.enable_progress_bar)
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
