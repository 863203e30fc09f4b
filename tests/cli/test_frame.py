"""What holds for every command."""

from __future__ import annotations

import errno
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from lorabake.cli import cli
from lorabake.cli.frame import Frame
from lorabake.errors import RecipeError, VerifyError

COMMANDS = [
    "make", "inspect", "plot", "generate", "compare", "eval", "record", "bench", "verify",
    "export", "push", "presets", "demo",
]  # fmt: skip
HEAVY = "{'torch', 'numpy', 'diffusers', 'transformers', 'matplotlib', 'PIL', 'tqdm'}"


def test_commands_in_the_order_of_work() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.output.split("Commands:")[1].strip().splitlines()]
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {command}")


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys; from lorabake.cli import cli; cli(['--help'], standalone_mode=False)"
    check = f"import atexit, sys; atexit.register(lambda: print({HEAVY} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", f"{check}; {code}"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Bake a content LoRA" in result.stdout
    assert result.stdout.endswith("set()\n")


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("lorabake 0.")


def test_nothing_is_help() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 0
    assert "Commands:" in result.output


def failing(error: BaseException) -> Frame:
    @click.group(cls=Frame)
    def group() -> None: ...

    @group.command()
    def fail() -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RecipeError("x is\nwrong", where="here"), 2, "lorabake: here: x is wrong."),
        (VerifyError("not what went in"), 1, "lorabake: not what went in"),
        (ZeroDivisionError("oh"), 1, "lorabake: unexpected ZeroDivisionError: oh"),
        (MemoryError(), 1, "lorabake: not enough memory"),
        (torch.OutOfMemoryError("CUDA"), 1, "lorabake: not enough memory"),
        (OSError(errno.EIO, "I/O error"), 1, "lorabake: unexpected OSError"),
        (KeyboardInterrupt(), 1, "lorabake: interrupted"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_status_and_one_line(error: BaseException, status: int, line: str) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exit_code == status
    assert result.stderr.strip().startswith(line)
    assert len(result.stderr.strip().splitlines()) == (1 if line else 0)
    assert result.stdout == ""


def test_the_traceback_can_be_had() -> None:
    result = CliRunner().invoke(
        failing(ZeroDivisionError("oh")), ["fail"], env={"LORABAKE_DEBUG": "1"}
    )
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_only_our_own_warnings_are_shown() -> None:
    @click.group(cls=Frame)
    def group() -> None: ...

    @group.command()
    def warn() -> None:
        warnings.warn_explicit("theirs", UserWarning, "x.py", 1, module="torch.nn")
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="lorabake.runtime.bundle")

    result = CliRunner().invoke(group, ["warn"])
    assert result.exit_code == 0
    assert result.stderr == "lorabake: warning: ours\n"
