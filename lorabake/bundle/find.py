"""Opening a bundle by path or hub id."""

from __future__ import annotations

from pathlib import Path

from .. import runtime
from ..errors import BundleError, LoraFileError
from ..lora.source import locate


def load(source: str | Path) -> runtime.Bundle:
    """Open a bundle for replay.

    Args:
        source: A file, a folder that holds one, or a hub id (`user/repo`, or
            `user/repo/file.safetensors`).

    Raises:
        BundleError: There is none, or it is damaged or too new.
    """
    try:
        path = locate(source).path
    except LoraFileError as error:
        raise BundleError(error.what, where=error.where, advice=error.advice) from error
    return runtime.read(path)
