"""What a command says when it is done."""

from __future__ import annotations

import json
from typing import Any, Protocol

import click


class Outcome(Protocol):
    """What a library function returns: its `str` is the report for people."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""
        ...

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        ...


def say(outcome: Outcome, *, quiet: bool, as_json: bool) -> None:
    """Warnings on stderr, the report on stdout; `--json` is asked for even where `--quiet` is."""
    for text in () if quiet else outcome.warnings:
        click.echo(f"lorabake: warning: {text}", err=True)
    if as_json:
        click.echo(json.dumps(outcome.to_json()))
    elif not quiet:
        click.echo(outcome)
