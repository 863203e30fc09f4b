"""The type checker runs beside the other tests: it takes half a minute and needs none of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKER: pytest.StashKey[subprocess.Popen[str]] = pytest.StashKey()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start it, if its test is among those that will run."""
    wanted = any(item.name == "test_the_types" for item in session.items)
    program = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if wanted and program and not session.config.option.collectonly:
        session.config.stash[CHECKER] = subprocess.Popen(
            [program, "--level", "error"], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing running behind an interrupted suite."""
    if (process := config.stash.get(CHECKER, None)) is not None and process.poll() is None:
        process.kill()
        process.communicate()
