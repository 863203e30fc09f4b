"""`lorabake record`: a bundle that chooses live in, a static one out."""

from __future__ import annotations

import click

from . import options
from .bar import bar
from .outcome import say


@click.command()
@click.argument("bundle")
@click.option("--base", required=True, metavar="DIR|ID", help="Base model in diffusers format.")
@click.option(
    "--prompt", "prompts", required=True, multiple=True, metavar="TEXT",
    help="What to paint, with the trigger words in it; may be repeated.",
)  # fmt: skip
@options.output("Bundle")
@click.option(
    "--seeds", type=click.IntRange(1, 10_000), default=8, show_default=True,
    help="Images of each prompt.",
)  # fmt: skip
@click.option(
    "--seed", "first_seed", type=click.IntRange(0, 2**62), default=0, show_default=True,
    help="Seed of the first; the others count up from it.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(1, 10_000), default=25, show_default=True,
    help="Number of denoising steps.",
)  # fmt: skip
@click.option(
    "--bins", type=click.IntRange(1, 10_000),
    help="Into how many parts the plan cuts the steps (default: one for each).",
)  # fmt: skip
@click.option("--guidance", type=float, help="Guidance scale (default: the pipeline's).")
@click.option("--width", type=click.IntRange(8))
@click.option("--height", type=click.IntRange(8))
@options.device
@options.base_dtype
@options.force
@options.quiet
@options.as_json
def record(
    bundle: str,
    base: str,
    prompts: tuple[str, ...],
    output: str,
    seeds: int,
    first_seed: int,
    steps: int,
    bins: int | None,
    guidance: float | None,
    width: int | None,
    height: int | None,
    device: str,
    dtype: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn BUNDLE, which chooses live, into a static one of the same LoRAs.

    Paints each prompt with each seed, writes down what the majority chose in each layer at each
    step, and tells how much the choices depend on prompt and seed. Without live cost afterwards.
    """
    import torch

    from ..recording import record as recorded

    with bar(quiet=quiet) as progress:
        result = recorded(
            bundle, output, base, prompts, seeds, first_seed, steps, bins,
            guidance_scale=guidance, width=width, height=height, device=device,
            dtype=getattr(torch, dtype) if dtype else None, force=force, progress=progress,
        )  # fmt: skip
    say(result, quiet=quiet, as_json=as_json)
