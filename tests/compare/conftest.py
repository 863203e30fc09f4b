from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from lorabake import pipelines

from . import stage


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage.world(tmp_path_factory.mktemp("world"))


load_once = lru_cache(pipelines.load)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """A model is loaded once for all tests: each comparison must leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines, "load", load_once)
        yield
