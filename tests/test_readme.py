"""Every fenced block of the README runs, in order, in a folder that holds what a user has."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorabake.cli import cli
from lorabake.demo.showcase import STYLE, SUBJECT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICK, GUIDE = README.partition("## Quick start")[2].split("\n## ", 1)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: LoRAs, a model and encoders, under the names that the README uses."""
    folder = tmp_path_factory.mktemp("readme")
    toys = ROOT / "lorabake" / "demo"
    for name, role in ((SUBJECT, "subject"), (STYLE, "style")):
        shutil.copy(toys / "loras" / f"{name}.safetensors", folder / f"{role}.safetensors")
    (folder / "my-model").symlink_to(toys / "model")
    for name in ("clip", "dino"):
        (folder / f"my-{name}").symlink_to(toys / "encoders" / name)
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    result = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_quick_start_has_two_commands() -> None:
    commands = [body.strip() for _, body in BLOCK.findall(QUICK)]
    assert len(commands) == 2
    setup = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e "
    assert all(command.startswith(setup) for command in commands)
    assert [command.split("&& ")[-1] for command in commands] == [
        ".venv/bin/lorabake demo",
        ".venv/bin/pytest -n auto --dist loadfile",
    ]


def test_ci_calls_the_second_command() -> None:
    """Run the script with a `sh` that only records what it is asked to run."""
    fake = "sh() { printf '%s' \"$2\"; }; export -f sh; bash .ci/run"
    recorded = run(["bash", "-c", fake], ROOT)
    second = BLOCK.findall(QUICK)[1][1].strip()
    assert recorded.endswith(second)


def sh(body: str) -> None:
    """Each command in this process, which has imported what takes long."""
    for line in body.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "lorabake"
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def python(body: str) -> None:
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(body, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("language", "body"), [pytest.param(*b, id=b[1].split("\n")[0]) for b in BLOCK.findall(GUIDE)]
)
def test_block_runs(
    language: str, body: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    {"sh": sh, "python": python}[language](body)


def test_the_command_is_installed(folder: Path, tmp_path: Path) -> None:
    first = BLOCK.findall(GUIDE)[0][1].replace("bundle.safetensors", str(tmp_path / "b"))
    run(["sh", "-ec", first], folder)
    assert (tmp_path / "b").exists()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
