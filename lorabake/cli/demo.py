"""`lorabake demo`: the whole tool on a model and LoRAs that ship with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from . import options


@click.command()
@click.option(
    "-o", "--output", default="lorabake-demo", show_default=True, metavar="DIR",
    help="Folder to write into.",
)  # fmt: skip
@options.as_json
def demo(output: str, as_json: bool) -> None:
    """Bake, replay, render and score two LoRAs of a toy model, in a minute and offline."""
    from ..demo import showcase

    rows = showcase.run(Path(output))
    click.echo(json.dumps(rows) if as_json else str(rows))
