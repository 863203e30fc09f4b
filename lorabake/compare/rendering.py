"""Painting: each variant, prompt and seed once, by a pipeline that is loaded once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import torch

from .. import output, pipelines
from ..errors import AttachError, LorabakeError, OverrideError, out_of_memory
from ..pipelines.identity import identity
from ..pipelines.render import together
from . import pictures
from .pictures import Picture

BLOCK = 4
"""Seeds that are painted in one call, 0 to 3, 4 to 7 and so on, where pictures are small."""
_SMALL = 1 << 14
"""Pixels up to which a call with several pictures is faster than several calls."""

Attach = Callable[[Any], AbstractContextManager[object]]


class Renderer:
    """A base model and how it paints.

    Args:
        base: Folder in diffusers format or hub id; loaded when the first picture is asked for.
        device: Where to compute.
        dtype: Of its weights; None is float32 on a CPU and bfloat16 elsewhere.
        options: Of the pipeline's call.
        cache: Folder for pictures that other comparisons want as well; None for none.

    Attributes:
        painted: How many pictures were painted, and not found.
    """

    def __init__(
        self,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype | None,
        options: Mapping[str, Any],
        cache: Path | None = None,
    ) -> None:
        self.device = device
        self._base, self._dtype, self._cache = base, dtype, cache
        self._options = {k: v for k, v in options.items() if v is not None}
        self.painted = 0

    @cached_property
    def pipe(self) -> Any:  # noqa: ANN401 - any diffusers pipeline
        """The pipeline."""
        return pipelines.load(self._base, device=self.device, dtype=self._dtype)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What pictures depend on beside prompt, seed and LoRAs."""
        return {
            "base": identity(self.pipe), "options": self._options, "device": self.device.type,
            "dtype": str(self._dtype or "auto"), "block": self._block,
            "torch": torch.__version__, "diffusers": diffusers.__version__,
        }  # fmt: skip

    @cached_property
    def _block(self) -> int:
        """How many seeds share a call.

        Among other seeds a picture differs in its last bits, so each is always painted in the
        same company, whatever was asked for: what it looks like depends on nothing else.
        """
        native = _native(self.pipe)
        width, height = (self._options.get(side) or native for side in ("width", "height"))
        return BLOCK if width * height <= _SMALL else 1

    def paint(
        self,
        wanted: Sequence[Picture],
        attach: Attach | None,
        *,
        alone: bool = False,
        shared: bool = False,
        done: Callable[[int], None] = lambda count: None,
    ) -> list[str]:
        """Paint what is not there.

        Args:
            wanted: Pictures; those of one prompt are neighbours.
            attach: What is at work in the pipeline meanwhile; None for nothing.
            alone: Whether each picture must have a call of its own.
            shared: Whether other comparisons want the same pictures.
            done: Told how many more are there, with each call.

        Returns:
            Why each picture shows nothing; empty where it is good.

        Raises:
            AttachError: It does not fit the pipeline.
            OverrideError: A load-time parameter is unknown or out of range.
        """
        found = {x.path: self._there(x, shared=shared) for x in wanted}
        missing = [x for x in wanted if found[x.path] is None]
        done(len(wanted) - len(missing))
        if missing:
            with attach(self.pipe) if attach else nullcontext():
                for group in self._groups(missing, alone=alone):
                    found |= self._call(group, alone=alone)
                    if shared:
                        self._share(group)
                    done(len(group))
        return [found[x.path] or "" for x in wanted]

    def _there(self, picture: Picture, *, shared: bool) -> str | None:
        found = pictures.failure(picture)
        if found is None and shared and self._cache:
            kept = self._kept(picture)
            if (found := pictures.failure(kept)) is not None:
                _copy(kept.path, picture.path)
        return found

    def _share(self, group: Sequence[Picture]) -> None:
        for picture in group if self._cache else ():
            if picture.path.exists():
                _copy(picture.path, self._kept(picture).path)

    def _kept(self, picture: Picture) -> Picture:
        return replace(picture, path=(self._cache or Path()) / f"{picture.key[:32]}.png")

    def _groups(self, missing: Sequence[Picture], *, alone: bool) -> Iterator[list[Picture]]:
        size = 1 if alone else self._block
        for _, group in groupby(missing, lambda x: (x.prompt, x.seed // size)):
            yield list(group)

    def _call(self, group: Sequence[Picture], *, alone: bool) -> dict[Path, str | None]:
        """Paint one prompt's block of seeds, and write what is wanted of it."""
        size = 1 if alone else self._block
        start = group[0].seed // size * size
        try:
            seeds = range(start, start + size)
            painted = together(self.pipe, group[0].prompt, seeds, **self._options)
        except (OverrideError, AttachError):
            raise
        except Exception as error:
            if not (isinstance(error, LorabakeError) or out_of_memory(error)):
                raise
            reason = "not enough memory" if out_of_memory(error) else str(error)
            return {x.path: reason for x in group}
        for picture in group:
            pictures.write(picture, painted[picture.seed - start])
            self.painted += 1
        return {x.path: pictures.failure(x) for x in group}


def _native(pipe: Any) -> int:  # noqa: ANN401 - any diffusers pipeline
    """Height and width that a pipeline paints in by itself, or more."""
    unet = getattr(getattr(pipe, "unet", None), "config", None)
    side = getattr(pipe, "default_sample_size", None) or getattr(unet, "sample_size", None)
    return side * pipe.vae_scale_factor if isinstance(side, int) else 1024


def _copy(source: Path, target: Path) -> None:
    output.folder(target.parent)
    with source.open("rb") as data, output.replacing(target) as file:
        shutil.copyfileobj(data, file)
