"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
quiet: Decorator = click.option(
    "--quiet", "-q", is_flag=True, help="No progress bar and no report, only errors."
)
force: Decorator = click.option("--force", "-f", is_flag=True, help="Replace an existing output.")
device: Decorator = click.option(
    "--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1, mps …"
)
base_dtype: Decorator = click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the base model's weights (default: float32 on a CPU, else bfloat16).",
)  # fmt: skip
steps: Decorator = click.option(
    "--steps", type=click.IntRange(1, 10_000), help="Number of denoising steps."
)


def output(what: str) -> Decorator:
    """The option `-o FILE`; `what` names the file in the help."""
    return click.option("-o", "--output", required=True, metavar="FILE", help=f"{what} to write.")


_TRAINED = (
    click.option("--content-prompt", metavar="TEXT", help="What the subject was trained with."),
    click.option("--style-prompt", metavar="TEXT", help="What the style was trained with."),
    click.option(
        "--content-images", metavar="DIR|FILE",
        help="Images of the subject, or one (default: the LoRA paints its own).",
    ),
    click.option(
        "--style-images", metavar="DIR|FILE",
        help="Images of the style, or one (default: the LoRA paints its own).",
    ),
    click.option("--clip", metavar="DIR|ID", help="CLIP image encoder of the guidance."),
    click.option("--dino", metavar="DIR|ID", help="DINO image encoder of the guidance."),
    click.option("--updates", type=int, metavar="N", help="Gradient steps at most."),
    click.option("--lambda", "lambda_", type=float, metavar="X", help="Weight of the similarity."),
    click.option("--lr", type=float, metavar="X", help="Learning rate."),
    click.option("--seed", type=int, metavar="N", help="Seed of everything that is drawn."),
    click.option("--resume", is_flag=True, help="Go on with a training that was interrupted."),
)  # fmt: skip


def trained(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of methods that use the base model: parameters of the method, but for `--resume`."""
    return reduce(lambda decorated, option: option(decorated), reversed(_TRAINED), command)


folder: Decorator = click.option(
    "-o", "--output", required=True, metavar="DIR",
    help="Folder to write into: a new one, or that of an earlier run.",
)  # fmt: skip

_SETUP = (
    click.option(
        "--method", "methods", multiple=True, metavar="NAME[:KEY=VALUE,…]",
        help="Method to compare (default: every one that needs nothing more than what is given).",
    ),
    click.option(
        "--preset", "presets", multiple=True, metavar="NAME|FILE[:…]",
        help="Preset to compare; may be repeated, as all of these.",
    ),
    click.option(
        "--bundle", "bundles", multiple=True, metavar="FILE[:…]",
        help="Bundle that is there already.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE",
        help="Parameter for all that have it.",
    ),
    click.option(
        "--grid", multiple=True, metavar="KEY=V1,V2,…",
        help="Each that has this parameter once for each value; several multiply.",
    ),
    click.option(
        "--seeds", type=click.IntRange(1, 10_000), default=8, show_default=True,
        help="Pictures of each prompt.",
    ),
    click.option(
        "--seed", "first_seed", type=click.IntRange(0, 2**62), default=0, show_default=True,
        help="Seed of the first; the others count up from it.",
    ),
    click.option(
        "--steps", type=click.IntRange(1, 10_000), default=25, show_default=True,
        help="Number of denoising steps.",
    ),
    click.option("--guidance", type=float, help="Guidance scale (default: the pipeline's)."),
    click.option("--width", type=click.IntRange(8)),
    click.option("--height", type=click.IntRange(8)),
    click.option(
        "--clip", metavar="DIR|ID", help="CLIP encoder (default: ViT-B/32; demo: its own)."
    ),
    click.option("--dino", metavar="DIR|ID", help="DINO encoder (default: ViT-S/16, likewise)."),
    click.option("--csd", metavar="DIR|ID", help="Style descriptor (default: CSD, likewise)."),
    device,
    base_dtype,
    click.option("--family", metavar="NAME", help="Base model family (default: told by files)."),
    click.option(
        "--svd-rank", type=click.IntRange(1, 8192), metavar="R",
        help="Reduce LoHa, LoKr and the like to this rank where theirs is higher.",
    ),
)  # fmt: skip


def setup(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `compare` and `eval` compare and how: the fields of a `Setup`."""
    return reduce(lambda decorated, option: option(decorated), reversed(_SETUP), command)
