"""A comparison as a table for a terminal or for Markdown."""

from __future__ import annotations

from .result import Result, Row


def text(result: Result) -> str:
    """Aligned columns, then the machine and what it costs in memory."""
    head, *rows = _cells(result)
    table = [head, *rows]
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(head))]
    lines = [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        if len(row) == len(head)
        else f"{row[0].ljust(widths[0])}  {row[1]}"
        for row in table
    ]
    return "\n".join([*lines, "", *_notes(result)])


def markdown(result: Result) -> str:
    """The same as a Markdown table."""
    head, *rows = _cells(result)
    lines = [
        f"| {' | '.join(row + [''] * (len(head) - len(row)))} |"
        for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)
    ]
    return "\n".join([*lines, "", *(f"{note}  " for note in _notes(result))])


def _cells(result: Result) -> list[list[str]]:
    """The head and a row per way; a row of two cells says why there are no numbers."""
    images = [f"s/image ({count})" for count in result.steps]
    ratios = [f"× floor ({count})" for count in result.steps]
    head = ["", "s/step", *images, *ratios, "peak memory", "attach", "detach"]
    return [head, *(_row(row, result.steps) for row in result.rows)]


def _row(row: Row, steps: tuple[int, ...]) -> list[str]:
    if row.reason:
        return [row.label, f"– {row.reason}"]
    mark = "~" if row.extrapolated else ""
    return [
        row.label,
        _seconds(row.step),
        *(mark + _seconds(row.image[count]) for count in steps),
        *(f"{mark}{row.ratio[count]:.3f}" if row.ratio else "–" for count in steps),
        _bytes(row.memory),
        _seconds(row.attach),
        _seconds(row.detach),
    ]


def _notes(result: Result) -> list[str]:
    facts = dict(result.machine)
    rounds = f"{result.repeats} round" + "s" * (result.repeats > 1)
    threads = f"{result.machine['threads']} thread" + "s" * (facts.pop("threads") != 1)
    notes = [
        f"{facts.pop('device')}, {threads}, "
        + ", ".join(f"{name} {facts.pop(name)}" for name in ("torch", "diffusers", "peft")),
        ", ".join([*map(str, facts.values()), f"medians of {rounds}"]),
        f"lorabake holds {_bytes(result.loras)} of LoRAs; fused also {_bytes(result.kept)} of "
        "kept weights",
    ]
    if any(row.extrapolated for row in result.rows):
        notes.append("~ computed from a few steps")
    return notes


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
