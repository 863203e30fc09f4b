"""`lorabake inspect`: what is in a bundle."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from . import options
from .bar import bar

if TYPE_CHECKING:
    from ..compare import Robustness
    from ..runtime import Bundle


@click.command()
@click.argument("bundle")
@options.steps
@click.option(
    "--robustness",
    is_flag=True,
    help="Measure what is left of each LoRA on half of its layers and at half strength; needs "
    "--base.",
)
@click.option("--base", metavar="DIR|ID", help="Base model to paint with, for --robustness.")
@click.option("--content-prompt", metavar="TEXT", help="For it (default: the trigger words).")
@click.option("--style-prompt", metavar="TEXT", help="For it (default: the trigger words).")
@click.option("--seeds", type=click.IntRange(1, 1000), default=8, show_default=True)
@click.option("--guidance", type=float, help="Guidance scale (default: the pipeline's).")
@click.option("--dino", metavar="DIR|ID", help="DINO encoder (default: ViT-S/16; demo: its own).")
@click.option("--csd", metavar="DIR|ID", help="Style descriptor (default: CSD, likewise).")
@options.device
@options.quiet
@options.as_json
def inspect(
    bundle: str, steps: int | None, robustness: bool, base: str | None, as_json: bool, quiet: bool,
    **given: Any,  # noqa: ANN401 - the options of --robustness
) -> None:  # fmt: skip
    """Show where a bundle comes from and what its plan does.

    BUNDLE is a file, or an id on the Hugging Face hub. With --steps, --json also tells what each
    layer applies at each step: 0 content, 1 style, null both or chosen live.

    With --robustness both LoRAs paint alone, whole and in part: methods that divide the layers
    between the two (klora, est, dynamic) want LoRAs that work on half of them.
    """
    from ..bundle import describe, load

    if robustness and base is None:
        raise click.UsageError("--robustness paints with a base model: name it with --base")
    found = load(bundle)
    measured = _measured(found, str(base), steps, quiet, given) if robustness else ()
    if as_json:
        told = describe(found, steps)
        if robustness:
            told["robustness"] = [asdict(one) | {"robust": one.robust} for one in measured]
        click.echo(json.dumps(told))
    else:
        lines = [*_page(describe(found, steps or 50), steps or 50), *([""] if measured else [])]
        click.echo("\n".join([*lines, *map(_printable, map(str, measured))]))


def _measured(
    bundle: Bundle, base: str, steps: int | None, quiet: bool, given: dict[str, Any]
) -> tuple[Robustness, ...]:
    from ..compare import robustness
    from ..device import device

    with bar(quiet=quiet) as progress:
        return robustness(
            bundle, base,
            prompts=(given["content_prompt"] or "", given["style_prompt"] or ""),
            encoders={"dino": given["dino"], "csd": given["csd"]}, seeds=given["seeds"],
            device=device(given["device"]), num_inference_steps=steps or 25,
            guidance_scale=given["guidance"],
            progress=lambda done, total: progress("painting", done, total),
        )  # fmt: skip


def _page(found: dict[str, Any], steps: int) -> list[str]:
    given = {k: " + ".join(map(str, v)) if isinstance(v, list) else v
             for k, v in found["params"].items()}  # fmt: skip
    params = ", ".join(f"{k} {v}" for k, v in given.items() if v != "")
    lines = [
        f"method   {found['method']}" + (f" ({params})" if params else ""),
        f"family   {found['family']}" + (f", made for {found['base']}" if found["base"] else ""),
        *(_source(source) for source in found["sources"]),
    ]
    if found["gamma"] is not None:
        lines.append(f"gamma    {found['gamma']:.4g}")
    if found["half"] != "both":
        lines.append(f"half     {found['half']} (of classifier-free guidance)")
    if found["guidance"] is not None:
        lines.append(_guidance(found["guidance"]))
    # Names and words are a stranger's: no control characters for the terminal.
    return [*map(_printable, lines), "", *_table(found["layers"], steps)]


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line)


def _source(source: dict[str, Any]) -> str:
    facts = [source["name"], f"strength {source['strength']:g}"]
    if source["trigger_words"]:
        facts.append(f"trigger words: {', '.join(source['trigger_words'])}")
    if source["license"]:
        facts.append(f"licence: {source['license']}")
    return f"{source['role']:<8} {', '.join(facts)}"


def _guidance(found: dict[str, Any]) -> str:
    encoders = " and ".join(found["encoders"].values())
    painted = [f'"{x["prompt"]}"' if x["prompt"] else "given images" for x in found["references"]]
    return f"guidance m {found['m']:g} by {encoders}, references: {', '.join(painted)}"


def _table(layers: list[dict[str, Any]], steps: int) -> list[str]:
    """Per part of the network: layers, ranks, and what is applied."""
    from ..parts import part

    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in layers:
        groups[part(layer["component"], layer["module"])].append(layer)
    weighted = any(layer["coefficients"] for layer in layers)
    head = "" if weighted else f"over {steps} steps"
    live = any(layer["live"] for layer in layers)
    what = "     m_c     m_s  overlap" if weighted else " content   style    both"
    what += "    live" * live
    lines = [f"{head:<14} layers  ranks (content + style)  {what}"]
    for name, members in [*groups.items(), ("all", layers)]:
        ranks = " + ".join(
            _span([m[key] for m in members]) for key in ("content_rank", "style_rank")
        )
        cells = _means(members) if weighted else _shares(members, live=live)
        lines.append(f"{name:<14} {len(members):>6}  {ranks:<23}  {cells}")
    return lines


def _shares(members: list[dict[str, Any]], *, live: bool) -> str:
    """What is applied over all steps."""
    count = Counter("live" if m["live"] else choice for m in members for choice in m["select"])
    shown = (0, 1, None, "live") if live else (0, 1, None)
    return "".join(f"{count[c] / count.total():>8.0%}" for c in shown)


def _means(members: list[dict[str, Any]]) -> str:
    """Column coefficients, and their overlap |m_c·m_s|, over the layers that have some."""
    found = [m["coefficients"] for m in members if m["coefficients"]]
    keys = ("content", "style", "product")
    means = [sum(one[key] for one in found) / len(found) if found else None for key in keys]
    return "".join("       –" if mean is None else f"{mean:>8.2f}" for mean in means)


def _span(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low}–{high}"
