"""`lorabake presets`: the recipes that ship with lorabake."""

from __future__ import annotations

import json

import click

from . import options


@click.command()
@options.as_json
def presets(as_json: bool) -> None:
    """List the presets for `make --preset`."""
    from .. import recipe

    rows = [
        {"name": name, "method": method, "description": text}
        for name, method, text in recipe.presets()
    ]
    if as_json:
        click.echo(json.dumps({"presets": rows}))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['description']}")
