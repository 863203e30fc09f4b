"""One plain LoRA to write: its layers, its files and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import output as outputs
from ...lora.families import Family
from ...lora.source import CONFIG
from ...runtime import Bundle
from ..fold import widest
from .about import configuration, metadata, sentence
from .file import Losses, Sheets
from .stretch import Stretch
from .styles import Sheet, sheets
from .wanted import Wanted


@dataclass(frozen=True, eq=False)
class Job:
    """One plain LoRA to write.

    Attributes:
        bundle: Where it is from.
        family: Of the base model.
        wanted: What was asked for.
        stretch: Its layers, and the time that it stands for.
        target: Its file, or its folder.
        common: What its files share.
        sheets: Its files.
    """

    bundle: Bundle
    family: Family
    wanted: Wanted
    stretch: Stretch
    target: Path
    common: Sheets
    sheets: list[Sheet]

    @property
    def paths(self) -> list[Path]:
        """All files that are written."""
        tensors = [sheet.path for sheet in self.sheets]
        configs = [path.with_name(CONFIG) for path in tensors if self.wanted.to == "peft"]
        return [*tensors, *configs]

    def write(self, whole: ExitStack, told: Callable[[], None]) -> Losses:
        """Write the files.

        Args:
            whole: When it ends without error the files are where they belong, otherwise nowhere.
            told: Called once per module.

        Raises:
            OutputError: A value does not fit, or the system refuses a file.
        """
        losses: Losses = {}
        for sheet in self.sheets:
            names = [name for module in sheet.modules for name in module.layers if name]
            rank = self.common.ranks[names[0].component]
            if self.wanted.to == "peft":
                outputs.folder(sheet.path.parent)
                config = configuration(self.bundle.manifest, self.family, names, rank)
                beside = sheet.path.with_name(CONFIG).resolve()
                text = json.dumps(config, indent=2, sort_keys=True)
                whole.enter_context(outputs.replacing(beside)).write(text.encode())
            file = whole.enter_context(outputs.replacing(sheet.path.resolve()))
            losses |= self.common.write(file, sheet, self._metadata(rank), told)
        return losses

    def _metadata(self, rank: int) -> dict[str, str]:
        of, manifest = self.stretch, self.bundle.manifest
        static = all(len(layer.shares) == 1 for layer in of.layers)
        what = sentence(manifest, self.wanted, float(of.start), float(of.end), static=static)
        return metadata(manifest, self.family, self.wanted, rank, what)


def stored(bundle: Bundle) -> torch.dtype:
    """The dtype that holds all of a bundle's tensors."""
    return widest({t.dtype for layer in bundle.manifest.layers for t in bundle.factors(layer, 0)})


def job(
    bundle: Bundle,
    family: Family,
    wanted: Wanted,
    stretch: Stretch,
    target: Path,
    dtype: torch.dtype,
) -> Job:
    """What there is to write for one stretch of time.

    Args:
        bundle: Whose plan it is.
        family: The bundle's.
        wanted: What was asked for.
        stretch: The time and the plan in it.
        target: The file or folder to write.
        dtype: Of all tensors.

    Raises:
        LoraFileError: The family has no such layer.
        OutputError: The key style has no name for a layer.
    """
    layers = {layer.name: layer for layer in stretch.layers}
    common = Sheets(wanted.to, layers, wanted.rank, dtype)
    shapes = {name: layer.shape for name, layer in layers.items()}
    files = sheets(wanted.to, family, shapes, target)
    return Job(bundle, family, wanted, stretch, target, common, files)
