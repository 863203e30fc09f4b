"""`lorabake eval`: a protocol over many pairs of LoRAs, and the table that papers have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from . import options
from .bar import bar
from .outcome import say


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if not (match := re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)):
        raise click.BadParameter("write i/n, as in 1/4.", ctx, param)
    return int(match[1]), int(match[2])


@click.command("eval")
@click.argument("pairs")
@click.option("--base", metavar="DIR|ID", help="Base model in diffusers format.")
@click.option("-o", "--output", metavar="DIR", help="Folder to write into, new or an earlier one.")
@click.option(
    "--shard", callback=_shard, metavar="I/N",
    help="Do every N-th pair from the I-th on; the others are done elsewhere.",
)  # fmt: skip
@click.option(
    "--dreambooth", metavar="DIR", help="Write PAIRS: subjects laid out as DreamBooth's data set."
)
@click.option("--styledrop", metavar="DIR", help="Likewise: styles laid out as StyleDrop's.")
@click.option("--loras", metavar="DIR", help="Likewise: their LoRAs, NAME.safetensors each.")
@click.option(
    "--token", default="sks", show_default=True, metavar="WORD",
    help="Likewise: word before the class in the subjects' prompts.",
)  # fmt: skip
@options.setup
@options.force
@options.quiet
@options.as_json
def evaluate(
    pairs: str,
    base: str | None,
    output: str | None,
    shard: tuple[int, int] | None,
    dreambooth: str | None,
    styledrop: str | None,
    loras: str | None,
    token: str,
    force: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - the options of a setup
) -> None:
    """Compare ways to fuse the LoRAs of each row of PAIRS, a CSV file, and print one table.

    Columns: content, style, prompts (separated by |), and if wanted content_images, style_images,
    name, content_prompt, style_prompt. The same command goes on where it was interrupted. With
    --dreambooth, --styledrop and --loras PAIRS is written, not read.
    """
    ctx = click.get_current_context()
    layout = (dreambooth, styledrop, loras)
    if any(layout):
        if dreambooth is None or styledrop is None or loras is None:
            raise click.UsageError("Give --dreambooth, --styledrop and --loras together.", ctx)
        count = _written(pairs, dreambooth, styledrop, loras, token, force=force)
        click.echo(f"{pairs}: {count} pairs", err=quiet)
        return
    if base is None or output is None:
        raise click.UsageError("Give --base and -o.", ctx)
    from ..compare import Setup
    from ..compare import evaluate as evaluated

    with bar(quiet=quiet) as progress:
        found = evaluated(pairs, output, base, setup=Setup(**given), shard=shard, progress=progress)
    say(found, quiet=quiet, as_json=as_json)


def _written(
    pairs: str, dreambooth: str, styledrop: str, loras: str, token: str, *, force: bool
) -> int:
    """Write a pairs file of two data sets; how many pairs."""
    from .. import output
    from ..compare import datasets
    from ..compare.pairs import write

    inputs = tuple(map(Path, (dreambooth, styledrop, loras)))
    target = output.check(pairs, force=force, inputs=inputs)
    rows = datasets.pairs(
        datasets.dreambooth(dreambooth), datasets.styledrop(styledrop), loras, token
    )
    write(rows, target)
    return len(rows)
