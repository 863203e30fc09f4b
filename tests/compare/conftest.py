from __future__ import annotations

from pathlib import Path

import pytest

from . import stage


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage.world(tmp_path_factory.mktemp("world"))
