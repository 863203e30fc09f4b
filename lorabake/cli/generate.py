"""`lorabake generate`: images from a bundle."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from . import options
from .bar import bar

if TYPE_CHECKING:
    from ..runtime.report import Report


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("a finite number is needed.", ctx, param)
    return value


def _text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    # Bytes that are no UTF-8 come as lone surrogates, which no tokeniser takes.
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("it is not UTF-8 text.", ctx, param) from error
    return value


@click.command()
@click.argument("bundle")
@click.option("--base", required=True, metavar="DIR|ID", help="Base model in diffusers format.")
@click.option(
    "--prompt", required=True, callback=_text, help="What to paint, with the trigger words in it."
)
@options.output("PNG")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option(
    "--count", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Number of images, on one sheet; seeds count up from --seed.",
)  # fmt: skip
@click.option(
    "--compare", is_flag=True,
    help="Labelled columns: base, content only, style only, direct merge, bundle.",
)  # fmt: skip
@options.steps
@click.option(
    "--guidance", type=float, callback=_finite, help="Guidance scale (default: the pipeline's)."
)
@click.option("--negative-prompt", callback=_text, help="What not to paint.")
@click.option("--width", type=click.IntRange(8))
@click.option("--height", type=click.IntRange(8))
@click.option("--content-strength", type=float, default=1.0, show_default=True)
@click.option("--style-strength", type=float, default=1.0, show_default=True)
@click.option(
    "--guided/--no-guidance", "guided", default=True,
    help="Whether a bundle with references guides the latents (default: it does).",
)  # fmt: skip
@click.option(
    "--half", type=click.Choice(["both", "conditional"]),
    help="In which half of classifier-free guidance the LoRAs act (default: as BUNDLE says).",
)  # fmt: skip
@click.option("--clip", metavar="DIR|ID", help="CLIP encoder (default: the one BUNDLE names).")
@click.option("--dino", metavar="DIR|ID", help="DINO encoder (default: the one BUNDLE names).")
@click.option("--report", metavar="JSON", help="Also write down what was applied where.")
@options.device
@options.force
@options.quiet
@options.as_json
def generate(
    bundle: str,
    base: str,
    prompt: str,
    output: str,
    seed: int,
    count: int,
    compare: bool,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
    width: int | None,
    height: int | None,
    content_strength: float,
    style_strength: float,
    guided: bool,
    half: Literal["both", "conditional"] | None,
    clip: str | None,
    dino: str | None,
    report: str | None,
    device: str,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Render images with BUNDLE replayed in a base model.

    One image with --seed alone; several (--count) are put on one sheet, and --compare puts what
    the parts of the bundle alone would give beside them.
    """
    from .. import output as outputs
    from .. import pipelines
    from ..bundle import load
    from ..device import device as device_named

    if (width is None) != (height is None):
        # Some pipelines take their own size for both then, in silence.
        raise click.UsageError("Give --width and --height together.", click.get_current_context())
    found = load(bundle)
    inputs = (found.path, Path(base))
    target = outputs.check(output, force=force, inputs=inputs)
    written = outputs.check(report, force=force, inputs=inputs) if report else None
    if written == target:
        raise click.UsageError("Give --report another file.", click.get_current_context())
    told: list[Report] = []
    seeds = range(seed, seed + count)
    with bar(quiet=quiet) as progress:
        images = pipelines.generate(
            found, base, prompt, seeds=seeds, compare=compare, device=device_named(device),
            strengths=(content_strength, style_strength),
            guidance=guided, half=half, clip=clip, dino=dino, told=told.append if written else None,
            progress=lambda *n: progress("rendering", *n),
            num_inference_steps=steps, guidance_scale=guidance, negative_prompt=negative_prompt,
            width=width, height=height,
        )  # fmt: skip
    page = pipelines.sheet(images) if compare else pipelines.grid(images[found.manifest.method])
    picture = io.BytesIO()
    page.save(picture, "PNG")
    with outputs.replacing(target) as file:
        file.write(picture.getvalue())
    if written is not None:
        with outputs.replacing(written) as file:
            file.write(json.dumps(told[0]).encode())
    if as_json:
        click.echo(json.dumps({"output": output, "seeds": list(seeds), "columns": list(images)}))
    elif not quiet:
        click.echo(f"{output}: {count} × {', '.join(images)}")
