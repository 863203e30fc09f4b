"""What holds for every command: exit status, one line per error, silence of the libraries."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from typing import Any, NoReturn, TextIO

import click

DONE, FAILED, BAD_INPUT = 0, 1, 2
_LONGEST = 200
_DEBUG = "LORABAKE_DEBUG"


class Frame(click.Group):
    """The group of all commands; turns every outcome into a status and at most one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of a user's work, not of the alphabet."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - click's own signature
        """Run and exit: 0 done, 2 bad usage or bad input, 1 anything else."""
        kwargs["standalone_mode"] = False
        with warnings.catch_warnings():
            if not os.environ.get(_DEBUG):
                _hush()
            sys.exit(self._status(args, kwargs))

    def _status(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        try:
            status = super().main(*args, **kwargs)
            sys.stdout.flush()
            return status or DONE
        except BrokenPipeError:
            # The reader of our output has seen enough; nor can the interpreter flush at its exit.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except (KeyboardInterrupt, click.Abort):
            return _say("interrupted", FAILED)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            return DONE
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "lorabake"
            return _say(f"{error.format_message()} Try '{path} --help'.", BAD_INPUT)
        except click.ClickException as error:
            return _say(error.format_message(), BAD_INPUT)
        except Exception as error:
            return _failure(error)


def _failure(error: Exception) -> int:
    from ..errors import LorabakeError, out_of_memory

    if os.environ.get(_DEBUG):
        traceback.print_exc()
    if isinstance(error, LorabakeError):
        return _say(str(error), error.exit_code)
    if out_of_memory(error):
        return _say("not enough memory", FAILED)
    hint = f" ({_DEBUG}=1 shows where)"
    return _say(f"unexpected {type(error).__name__}: {error}{hint}", FAILED)


def _say(message: str, status: int) -> int:
    """Print an error as one line, whatever breaks it has and however long a name in it is."""
    from ..errors import shortened

    click.echo(f"lorabake: {' '.join(shortened(x, _LONGEST) for x in message.split())}", err=True)
    return status


def _hush() -> None:
    """Keep the libraries' warnings and logs from stderr; lorabake's own get one line."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        _say(f"warning: {message}", DONE)

    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module=r"lorabake\.")
    warnings.showwarning = show
