"""A bundle's tensors, byte for byte, under another manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import BundleError, listed
from ..runtime.container import Container
from ..runtime.manifest import KEY, Manifest, dumps
from .header import Entry, head

_WRITTEN = (torch.float16, torch.bfloat16, torch.float32)


def stored(source: Path) -> torch.dtype:
    """The dtype of a bundle's tensors.

    Raises:
        BundleError: They have several, or one in which no bundle is written.
    """
    container = Container(source)
    found = {container.tensor(key).dtype for key in container.keys}
    if len(found) > 1 or not found <= {*_WRITTEN}:
        raise BundleError(
            f"its tensors are {listed(sorted(str(dtype)[6:] for dtype in found))}; a bundle can be "
            "written in one of float16, bfloat16 and float32",
            where=str(source),
            advice="Make the bundle again",
        )
    return found.pop()


def rewrite(
    file: BinaryIO,
    source: Path,
    dtype: torch.dtype,
    manifest: Manifest,
    metadata: Mapping[str, str],
) -> str:
    """Write the tensors of one bundle as another, in canonical bytes.

    Args:
        file: Empty.
        source: The bundle whose tensors these are; one that is canonical keeps its digest.
        dtype: Of its tensors (`stored`).
        manifest: Of the new bundle; its digest does not matter.
        metadata: For other tools, beside the manifest.

    Returns:
        The digest.
    """
    container = Container(source)
    keys = sorted(container.keys)
    digest = hashlib.sha256()
    for key in keys:
        digest.update(_bytes(container, key))
    text = dumps(replace(manifest, digest=digest.hexdigest()))
    entries = [Entry(key, container.shape(key)) for key in keys]
    file.write(head(entries, dtype, {**metadata, KEY: text}))
    for key in keys:
        file.write(_bytes(container, key))
    file.flush()
    return digest.hexdigest()


def _bytes(container: Container, key: str) -> memoryview:
    return container.tensor(key).contiguous().view(-1).view(torch.uint8).numpy().data
