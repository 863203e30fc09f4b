"""`lorabake verify`: is a bundle whole, and is it made of these LoRAs?"""

from __future__ import annotations

import json

import click

from . import options
from .bar import bar


@click.command()
@click.argument("bundle")
@click.option(
    "--against", nargs=2, metavar="CONTENT STYLE",
    help="Also compare every layer with the LoRAs it was made of.",
)  # fmt: skip
@options.quiet
@options.as_json
def verify(bundle: str, against: tuple[str, str] | None, quiet: bool, as_json: bool) -> None:
    """Check that BUNDLE is undamaged and complete.

    If another tool has changed it, the error says what that did.
    """
    from .. import bundle as bundles

    with bar(quiet=quiet) as progress:
        checks = bundles.verify(bundle, against, lambda *n: progress("verifying", *n))
    if as_json:
        click.echo(json.dumps({"bundle": bundle, "checks": checks.to_json()}))
    elif not quiet:
        click.echo(f"{bundle}: {checks}")
