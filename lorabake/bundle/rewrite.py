"""A bundle's tensors, byte for byte, under another manifest."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import BundleError, LoraFileError, listed
from ..lora import families
from ..lora.families import Family
from ..runtime import Bundle
from ..runtime.container import Container
from ..runtime.manifest import KEY, Manifest, dumps
from .header import Entry, head
from .modelspec import modelspec

_WRITTEN = (torch.float16, torch.bfloat16, torch.float32)


def check_rewritable(bundle: Bundle) -> None:
    """Refuse a bundle that `rewrite` cannot write.

    Raises:
        BundleError: Its tensors have several dtypes, or one in which no bundle is written; or it
            is of an unknown family.
    """
    _dtype(Container(bundle.path))
    family_of(bundle.path, bundle.manifest)


def rewrite(file: BinaryIO, source: Path, manifest: Manifest) -> str:
    """Write the tensors of one bundle as another, in canonical bytes.

    Args:
        file: Empty.
        source: The bundle whose tensors these are; if it is canonical, its digest stays.
        manifest: Of the new bundle; its digest does not matter.

    Returns:
        The digest.

    Raises:
        BundleError: As `check_rewritable`.
    """
    container, family = Container(source), family_of(source, manifest)
    dtype, keys = _dtype(container), sorted(container.keys)
    digest = hashlib.sha256()
    for key in keys:
        digest.update(_bytes(container, key))
    ranks = {x.component: container.shape(x.down)[0] for x in manifest.layers}
    rank = ranks.get(family.denoiser, max(ranks.values()))
    text = dumps(replace(manifest, digest=digest.hexdigest()))
    metadata = {**modelspec(manifest, family.architecture, rank), KEY: text}
    file.write(head([Entry(key, container.shape(key)) for key in keys], dtype, metadata))
    for key in keys:
        file.write(_bytes(container, key))
    file.flush()
    return digest.hexdigest()


def _dtype(container: Container) -> torch.dtype:
    found = {container.tensor(key).dtype for key in container.keys}
    if len(found) > 1 or not found <= {*_WRITTEN}:
        raise BundleError(
            f"its tensors are {listed(sorted(str(dtype)[6:] for dtype in found))}; a bundle is "
            "written in one of float16, bfloat16 and float32",
            where=str(container.path),
            advice="Make the bundle again",
        )
    return found.pop()


def family_of(source: Path, manifest: Manifest) -> Family:
    """The family that a bundle's manifest names.

    Raises:
        BundleError: It is of an unknown family.
    """
    try:
        return families.get(manifest.family)
    except LoraFileError as error:
        raise BundleError(error.what, where=str(source), advice=error.advice) from error


def _bytes(container: Container, key: str) -> memoryview:
    return container.tensor(key).contiguous().view(-1).view(torch.uint8).numpy().data
