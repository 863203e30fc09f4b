"""`lorabake plot`: a picture of a bundle's plan."""

from __future__ import annotations

import click

from . import options


@click.command()
@click.argument("bundle")
@options.output("PNG")
@options.steps
@options.force
@options.quiet
def plot(bundle: str, output: str, steps: int | None, force: bool, quiet: bool) -> None:
    """Draw which LoRA each layer applies at each step; of ZipLoRA, each layer's coefficients."""
    from .. import plots
    from ..bundle import load

    share = plots.plot(load(bundle), output, steps=steps or 50, force=force)
    if not quiet:
        parts = ", ".join(f"{value:.0%} {name}" for name, value in share.items() if value)
        click.echo(f"{output}: {parts}")
