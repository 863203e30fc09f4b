"""`lorabake plot`: a picture of a bundle's plan."""

from __future__ import annotations

import click

from . import options


@click.command()
@click.argument("bundle")
@options.output("PNG")
@options.steps
@click.option("--report", metavar="JSON", help="Draw a run that `generate --report` wrote down.")
@options.force
@options.quiet
def plot(
    bundle: str, output: str, steps: int | None, report: str | None, force: bool, quiet: bool
) -> None:
    """Draw which LoRA each layer applies at each step; of ZipLoRA, each layer's coefficients."""
    from .. import applied, plots
    from ..bundle import load

    if steps and report:
        raise click.UsageError("A report has its own steps.", click.get_current_context())
    found, told = load(bundle), applied.read(report) if report else None
    share = plots.plot(found, output, steps=steps or 50, report=told, force=force)
    if not quiet:
        parts = ", ".join(f"{value:.0%} {name}" for name, value in share.items() if value)
        click.echo(f"{output}: {parts}")
