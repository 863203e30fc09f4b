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
