"""`lorabake compare`: which fusion is best for two LoRAs, and how sure that is."""

from __future__ import annotations

from typing import Any

import click

from . import options
from .bar import bar
from .outcome import say


@click.command()
@click.argument("content")
@click.argument("style")
@click.option("--base", required=True, metavar="DIR|ID", help="Base model in diffusers format.")
@click.option(
    "--prompt", "prompts", required=True, multiple=True, metavar="TEXT",
    help="What to paint, with the trigger words in it; may be repeated.",
)  # fmt: skip
@options.folder
@click.option("--content-prompt", metavar="TEXT", help="What the subject was trained with.")
@click.option("--style-prompt", metavar="TEXT", help="What the style was trained with.")
@click.option(
    "--content-images", metavar="DIR|FILE",
    help="Images of the subject, or one (default: the LoRA paints its own).",
)  # fmt: skip
@click.option(
    "--style-images", metavar="DIR|FILE",
    help="Images of the style, or one (default: the LoRA paints its own).",
)  # fmt: skip
@options.setup
@options.quiet
@options.as_json
def compare(
    content: str,
    style: str,
    base: str,
    prompts: tuple[str, ...],
    output: str,
    content_prompt: str | None,
    style_prompt: str | None,
    content_images: str | None,
    style_images: str | None,
    quiet: bool,
    as_json: bool,
    **given: Any,  # noqa: ANN401 - the options of a setup
) -> None:
    """Fuse the LoRAs CONTENT and STYLE in several ways, paint the same with each, and score.

    Writes report.html and everything that it is made of. What is there already and was made of the
    same is kept: the same command goes on where it was interrupted.
    """
    from ..compare import Setup, compare_fusions

    with bar(quiet=quiet) as progress:
        found = compare_fusions(
            content, style, output, base, prompts, content_prompt=content_prompt,
            style_prompt=style_prompt, content_images=content_images, style_images=style_images,
            setup=Setup(**given), progress=progress,
        )  # fmt: skip
    say(found, quiet=quiet, as_json=as_json)
