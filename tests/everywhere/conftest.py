"""The ledger of what runs where, and the seed of everything random."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .ledger import Ledger

PAGE = Path(__file__).parents[2] / "docs" / "replay.md"


@pytest.fixture(scope="session")
def ledger() -> Iterator[Ledger]:
    """Holds each verdict against docs/replay.md; LORABAKE_DOCS=write writes them there."""
    book = Ledger(PAGE, write=os.environ.get("LORABAKE_DOCS") == "write")
    yield book
    book.save()


@pytest.fixture(scope="session")
def seed() -> int:
    """Seeds weights, factors and latents, so that anybody can measure with others."""
    return int(os.environ.get("LORABAKE_SEED", "0"))
