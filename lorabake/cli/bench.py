"""`lorabake bench`: what replay costs on this machine."""

from __future__ import annotations

import json

import click

from . import options
from .bar import bar


@click.command()
@click.argument("bundle")
@click.option("--base", required=True, metavar="DIR|ID", help="Base model in diffusers format.")
@click.option("--prompt", default="a photo", show_default=True, help="Text of every image.")
@click.option(
    "--steps", type=click.IntRange(1, 10_000), default=25, show_default=True,
    help="Number of denoising steps.",
)  # fmt: skip
@click.option(
    "--repeats", type=click.IntRange(1, 1000), default=3, show_default=True,
    help="Images of each way, in turns; medians are shown.",
)  # fmt: skip
@click.option("--width", type=click.IntRange(8))
@click.option("--height", type=click.IntRange(8))
@options.device
@options.base_dtype
@click.option("--compile", "compiled", is_flag=True, help="Measure under torch.compile.")
@options.as_json
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def bench(
    bundle: str,
    base: str,
    prompt: str,
    steps: int,
    repeats: int,
    width: int | None,
    height: int | None,
    device: str,
    dtype: str | None,
    compiled: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time BUNDLE in a base model beside the other ways to use its LoRAs.

    The base model alone, one fused LoRA (nothing is faster), PEFT adapters, lorabake fused and
    with hooks, and K-LoRA computed anew in each layer call; of a bundle that chooses live,
    lorabake doing so.
    """
    import torch

    from ..bundle import load
    from ..device import device as device_named
    from ..pipelines import bench as benches

    if (width is None) != (height is None):
        raise click.UsageError("Give --width and --height together.", click.get_current_context())
    found = load(bundle)
    with bar(quiet=quiet) as progress:
        result = benches.bench(
            found, base, prompt, steps=steps, repeats=repeats, compiled=compiled,
            device=device_named(device), dtype=getattr(torch, dtype) if dtype else None,
            progress=lambda *n: progress("measuring", *n), width=width, height=height,
        )  # fmt: skip
    click.echo(json.dumps(result.to_json()) if as_json else benches.text(result))
