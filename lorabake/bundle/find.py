"""Opening a bundle by path or hub id."""

from __future__ import annotations

from pathlib import Path

from .. import runtime
from ..errors import BundleError, LoraFileError
from ..lora.source import locate


def load(source: str | Path, revision: str | None = None) -> runtime.Bundle:
    """Open a bundle for replay.

    What comes from the hub is kept in the cache of `huggingface_hub` (`HF_HOME`), and taken from
    there where the hub cannot be reached or `HF_HUB_OFFLINE` is set.

    Args:
        source: A file, a folder that holds one, or a hub id (`user/repo`, `user/repo@revision`,
            or either with `/file.safetensors`).
        revision: Branch, tag or commit of a hub id.

    Raises:
        BundleError: There is none, or it is damaged or too new.
    """
    return runtime.read(located(source, revision))


def located(source: str | Path, revision: str | None = None) -> Path:
    """The file on this machine that `source` means; arguments as of `load`.

    Raises:
        BundleError: There is none.
    """
    try:
        return locate(source, revision).path
    except LoraFileError as error:
        raise BundleError(error.what, where=error.where, advice=error.advice) from error
