"""The bundles of a comparison: baked once, and again only when what they are made of changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bake, output, recipe
from ..bundle import load
from ..errors import BundleError, UserError
from ..place import expanded, kind
from ..runtime.bundle import Bundle
from .pictures import digest
from .variants import Variant

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Baked:
    """A bundle, and what was said when it was baked."""

    bundle: Bundle
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baking:
    """Two LoRAs, and how they are baked.

    Attributes:
        content: File, folder or hub id.
        style: Likewise.
        sources: Digests of the two.
        base: Base model.
        folder: Where the bundles go.
        device: Where to compute.
        family: Of the base model; None to tell it from the files.
        svd_rank: See `make`.
    """

    content: str
    style: str
    sources: tuple[str, str]
    base: str
    folder: Path
    device: str
    family: str | None = None
    svd_rank: int | None = None

    def bundle(self, name: str, variant: Variant, tell: Tell, dtype: str | None = None) -> Baked:
        """A variant's bundle, as `name.safetensors`.

        Raises:
            LorabakeError: It cannot be baked.
        """
        if variant.bundle is not None:
            return Baked(load(variant.bundle))
        target, note = (self.folder / f"{name}.{end}" for end in ("safetensors", "json"))
        key = self._key(variant, dtype)
        if (found := _there(target, note, key)) is not None:
            return found
        output.folder(self.folder)
        note.unlink(missing_ok=True)
        warnings = self._bake(target, variant, tell, dtype)
        found = Baked(load(target), warnings)
        told = {"key": key, "tensors": found.bundle.manifest.digest, "warnings": warnings}
        with output.replacing(note) as file:
            file.write(json.dumps(told, indent=1).encode())
        return found

    def _bake(
        self, target: Path, variant: Variant, tell: Tell, dtype: str | None
    ) -> tuple[str, ...]:
        def attempt(*, resume: bool) -> tuple[str, ...]:
            return bake.bake(
                self.content, self.style, target, method=variant.method, preset=variant.preset,
                params=variant.params, base=self.base, dtype=dtype, device=self.device,
                family=self.family, svd_rank=self.svd_rank, force=True, resume=resume,
                progress=tell,
            ).warnings  # fmt: skip

        if not target.with_name(f"{target.name}.training").exists():
            return attempt(resume=False)
        try:
            return attempt(resume=True)
        except UserError:  # what was interrupted there was another training
            return attempt(resume=False)

    def _key(self, variant: Variant, dtype: str | None) -> str:
        """Digest of everything that a bundle depends on."""
        chosen = recipe.resolve(variant.method, variant.preset, variant.params)
        given = {str(path): stamp(path) for path in chosen.paths}
        return digest({
            "sources": self.sources, "method": chosen.method, "half": chosen.half,
            "params": vars(chosen.params),
            "asked": dict(variant.params),
            "given": given, "base": [self.base, stamp(self.base)], "dtype": dtype,
            "family": self.family, "svd_rank": self.svd_rank,
        })  # fmt: skip


def _there(target: Path, note: Path, key: str) -> Baked | None:
    """A bundle that was baked with this key and is whole."""
    try:
        told: Mapping[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        found = load(target)
    except (OSError, ValueError, BundleError):
        return None
    same = told.get("key") == key and told.get("tensors") == found.manifest.digest
    return Baked(found, tuple(told.get("warnings", ()))) if same and found.intact() else None


def stamp(place: str | Path) -> list[Any]:
    """Names, sizes and times of the files at a place, which change when these do; [] for an id."""
    path = expanded(place)
    if (found := kind(path)) is None:
        return []
    files = sorted(path.rglob("*")) if found == "folder" else [path]
    about = [(x, x.stat()) for x in files if kind(x) == "file"]
    return [[str(x.relative_to(path)), it.st_size, it.st_mtime_ns] for x, it in about]
