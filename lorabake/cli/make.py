"""`lorabake make`: two LoRAs in, one bundle out."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .bar import bar
from .outcome import say


@click.command()
@click.argument("content")
@click.argument("style")
@options.output("Bundle")
@click.option("--method", metavar="NAME", help="Fusion method (default: klora).")
@click.option("--preset", metavar="NAME|FILE", help="Preset by name, or a .toml file of your own.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Change one parameter of the method, or half=conditional; may be repeated.",
)  # fmt: skip
@click.option(
    "--base", metavar="DIR|ID", help="Base model: checked, recorded, painted and trained on."
)
@click.option("--content-strength", type=float, default=1.0, show_default=True)
@click.option("--style-strength", type=float, default=1.0, show_default=True)
@click.option(
    "--dtype", metavar="DTYPE",
    help="float16, bfloat16 or float32 (default: the wider one of the two LoRAs).",
)  # fmt: skip
@click.option(
    "--family",
    metavar="NAME",
    help="Base model family (default: told from the files).",
)
@click.option(
    "--svd-rank", type=click.IntRange(1, 8192), metavar="R",
    help="Reduce LoHa, LoKr and the like to this rank where theirs is higher.",
)  # fmt: skip
@options.trained
@options.device
@options.force
@options.quiet
@options.as_json
def make(
    content: str,
    style: str,
    output: str,
    method: str | None,
    preset: str | None,
    settings: tuple[str, ...],
    base: str | None,
    content_strength: float,
    style_strength: float,
    dtype: str | None,
    family: str | None,
    svd_rank: int | None,
    device: str,
    resume: bool,
    force: bool,
    quiet: bool,
    as_json: bool,
    **given: str | float | None,
) -> None:
    """Bake the LoRAs CONTENT and STYLE into one bundle.

    CONTENT and STYLE are .safetensors files, folders, or ids on the Hugging Face hub.
    """
    from .. import recipe
    from ..bake import bake

    params: dict[str, Any] = dict(map(recipe.parse_setting, settings))
    params |= {name: value for name, value in given.items() if value is not None}
    with bar(quiet=quiet) as progress:
        report = bake(
            content, style, output,
            method=method, preset=preset, params=params, base=base, dtype=dtype, device=device,
            strengths=(content_strength, style_strength), family=family, svd_rank=svd_rank,
            force=force, resume=resume, progress=progress, detail=progress.detail,
        )  # fmt: skip
    say(report, quiet=quiet, as_json=as_json)
