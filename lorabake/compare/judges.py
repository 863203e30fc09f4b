"""The encoders that pictures are scored with: which, from where, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BaseModelError
from ..pipelines import csd, encoders, texts
from ..pipelines.embed import Encoder
from ..pipelines.texts import Texts
from ..place import expanded, kind

Names = Mapping[str, str | Path | None]
"""`clip`, `dino` and `csd`: folder or hub id; None for the usual one."""

_PAPERS = {"clip": encoders.CLIP, "dino": encoders.DINO, "csd": csd.CSD}
_SCORES = {
    "clip": "CLIP-I", "dino": "DINO and leak", "csd": "CSD", "text": "CLIP-T",
}  # fmt: skip
_SHIPPED = Path(__file__).parents[1] / "demo"
"""The small model that comes with lorabake, and its encoders."""


@dataclass(frozen=True)
class Judge:
    """One encoder.

    Attributes:
        name: Hub id, or the name of its folder.
        digest: Hex SHA-256 of its weights; empty where it is not known.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Judges:
    """All encoders that could be loaded.

    Attributes:
        sees: By `clip`, `dino` and `csd`: from images to embeddings.
        reads: From prompts to CLIP's embeddings; None where CLIP has no text tower.
        judges: What they are.
        places: Their folders or hub ids.
        left_out: Why a score is missing, by the scores' names.
    """

    sees: Mapping[str, Encoder]
    reads: Texts | None
    judges: Mapping[str, Judge]
    places: Mapping[str, str]
    left_out: Mapping[str, str]


def usual(base: str | Path) -> dict[str, str]:
    """The encoders for pictures of a base model: the papers', or the shipped model's own."""
    if expanded(base).resolve() != _SHIPPED / "model":
        return dict(_PAPERS)
    return {role: str(_SHIPPED / "encoders" / role) for role in _PAPERS}


def load_judges(base: str | Path, names: Names, device: torch.device) -> Judges:
    """Load the encoders; those that cannot be had are left out with the reason."""
    wanted = {role: names.get(role) or name for role, name in usual(base).items()}
    sees: dict[str, Encoder] = {}
    judges: dict[str, Judge] = {}
    at_hand: dict[str, str | Path] = {}
    left_out: dict[str, str] = {}
    loaders = {"clip": encoders.load, "dino": encoders.load, "csd": csd.load}
    for role, load in loaders.items():
        name = wanted[role]
        told = csd.digest if role == "csd" else encoders.digest
        try:
            at_hand[role] = place = _at_hand(name, role)
            sees[role] = load(place, device=device)
            judges[role] = Judge(encoders.recorded(name), told(place))
        except BaseModelError as error:
            left_out[_SCORES[role]] = f"{encoders.recorded(name)}: {error.what}"
    reads = _reader(at_hand["clip"], device, left_out) if "clip" in sees else None
    if "clip" not in sees:
        left_out[_SCORES["text"]] = "there is no CLIP encoder"
    places = {role: str(wanted[role]) for role in sees}
    return Judges(sees, reads, judges, places, left_out)


def _at_hand(name: str | Path, role: str) -> str | Path:
    # Ports of CSD have no config.json, by which other encoders' folders are known.
    return name if role == "csd" and kind(name) is not None else encoders.at_hand(name)


def _reader(name: str | Path, device: torch.device, left_out: dict[str, str]) -> Texts | None:
    read: Callable[..., Texts] = texts.load
    try:
        return read(name, device=device)
    except BaseModelError as error:
        left_out[_SCORES["text"]] = f"{encoders.recorded(name)}: {error.what}"
        return None
