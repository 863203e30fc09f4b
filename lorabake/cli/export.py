"""`lorabake export`: a bundle in, plain LoRAs out."""

from __future__ import annotations

import click

from . import options
from .bar import bar
from .outcome import say


@click.command()
@click.argument("bundle")
@options.output("LoRA")
@click.option(
    "--to", type=click.Choice(["diffusers", "kohya", "peft"]), default="diffusers",
    show_default=True, help="Key style; peft writes a folder.",
)  # fmt: skip
@click.option(
    "--at", type=click.FloatRange(0, 1, max_open=True), metavar="P",
    help="The plan at this moment: 0 is the first step, 0.5 half-way.",
)  # fmt: skip
@click.option(
    "--timeline", type=click.IntRange(1, 1000), metavar="N",
    help="One LoRA for each of N parts of the run, and a JSON file that tells when.",
)  # fmt: skip
@click.option("--content-only", is_flag=True, help="The content LoRA as it went in.")
@click.option("--style-only", is_flag=True, help="The style LoRA as it went in.")
@click.option(
    "--steps", type=click.IntRange(1, 10_000), metavar="N",
    help="Take the mean over the steps of such a run (default: over all time).",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1), metavar="R", help="Compress to rank R by SVD.")
@options.force
@options.quiet
@options.as_json
def export(
    bundle: str,
    output: str,
    to: str,
    at: float | None,
    timeline: int | None,
    content_only: bool,
    style_only: bool,
    steps: int | None,
    rank: int | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn BUNDLE into a plain LoRA for apps that do not know bundles.

    Where the plan does not change over time the file is exact. Otherwise it is the plan's mean over
    time, and its error is told; --at and --timeline are nearer to the plan.
    """
    from ..bundle.export import export as exported

    if content_only and style_only:
        raise click.UsageError(
            "Give --content-only or --style-only, not both.", click.get_current_context()
        )
    only = "content" if content_only else "style" if style_only else None
    with bar(quiet=quiet) as progress:
        report = exported(
            bundle, output, to, at=at, timeline=timeline, only=only, steps=steps, rank=rank,  # pyright: ignore[reportArgumentType] - click has checked `to`
            force=force, progress=progress,
        )  # fmt: skip
    say(report, quiet=quiet, as_json=as_json)
