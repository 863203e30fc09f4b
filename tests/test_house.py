"""The rules of the house that a machine can check: style, types, import direction and weight."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check"),
        ("ruff", "format", "--check"),
        ("lint-imports", "--no-cache"),
        ("basedpyright", "--level", "error"),
    ],
    ids=" ".join,
)
def test_the_tools_find_nothing(command: tuple[str, ...]) -> None:
    program = shutil.which(command[0], path=str(BIN))
    assert program, f"{command[0]} is not installed beside {sys.executable}"
    result = run(program, *command[1:])
    assert result.returncode == 0, result.stdout + result.stderr


def modules_of(code: str, after: str = "pass") -> set[str]:
    """Top-level modules that the code adds in a fresh interpreter that has run `after`."""
    known = f"import sys; {after}; known = {{*sys.modules}}"
    result = run(sys.executable, "-c", f"{known}; {code}; print(*sys.modules.keys() - known)")
    assert result.returncode == 0, result.stderr
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_runtime_brings_only_torch_and_safetensors() -> None:
    added = modules_of("import lorabake.runtime", after="import torch, safetensors.torch")
    assert added == {"lorabake"}


def test_the_package_is_light_until_used() -> None:
    heavy = {"torch", "numpy", "diffusers", "transformers", "peft", "matplotlib", "PIL"}
    assert not modules_of("import lorabake, lorabake.cli") & heavy


def test_the_wheel_ships_presets_and_spec() -> None:
    """What the build configuration names must exist: hatch includes these by path."""
    assert list((ROOT / "schedules").glob("*.toml"))
    assert (ROOT / "lorabake" / "runtime" / "SPEC.md").is_file()
