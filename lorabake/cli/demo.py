"""`lorabake demo`: the whole tool on a model and LoRAs that ship with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from . import options
from .bar import bar

_OWN = "lorabake-demo"


@click.command()
@click.option("-o", "--output", metavar="DIR", help=f"Folder to write into (default: {_OWN}).")
@click.option("--seeds", type=click.IntRange(1, 1000), default=8, show_default=True)
@options.force
@options.quiet
@options.as_json
def demo(output: str | None, seeds: int, force: bool, quiet: bool, as_json: bool) -> None:
    """Bake, replay, render and score two LoRAs of a toy model, in a minute and offline."""
    from ..demo import showcase

    # The default folder is the demo's own: running it again replaces what it wrote there.
    with bar(quiet=quiet) as progress:
        result = showcase.run(
            Path(output or _OWN), seeds, force=force or output is None, progress=progress
        )
    if as_json:
        click.echo(json.dumps(result.to_json()))
    elif not quiet:
        paths = (result.bundle, *result.others, result.plan, result.comparison)
        click.echo("\n".join([str(result), "", *paths]))
