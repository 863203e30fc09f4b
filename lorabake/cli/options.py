"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet: Decorator = click.option(
    "--quiet", "-q", is_flag=True, help="No progress bar and no report, only errors."
)
force: Decorator = click.option("--force", "-f", is_flag=True, help="Replace an existing output.")
device: Decorator = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, mps …"
)
steps: Decorator = click.option(
    "--steps", type=click.IntRange(1, 10_000), help="Number of denoising steps."
)


def output(what: str) -> Decorator:
    """The option `-o FILE`; `what` names the file in the help."""
    return click.option("-o", "--output", required=True, metavar="FILE", help=f"{what} to write.")
