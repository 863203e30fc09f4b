"""Tables of a comparison: for terminals, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from .comparison import Comparison, Row
from .scores import STYLE, SUBJECT, TITLES
from .statistics import LEVEL, Mean

DASH = "–"


def heading(name: str) -> str:
    """A score's title; of CLIP-I, which there is twice, with what it is against."""
    if name in (*SUBJECT, *STYLE):
        return f"{TITLES[name]} ({'subject' if name in SUBJECT else 'style'})"
    return TITLES[name]


def rows_of(found: Comparison) -> list[list[str]]:
    """Head and rows of the table: means, and the paired difference to the direct merge."""
    names = found.scored
    extra = ["Δ harmonic mean to direct merge"] if "harmonic" in names else []
    lines = [["", *map(heading, names), *extra, "n", "failed"]]
    for row in found.rows:
        cells = [f"{row.means[name].mean:.3f}" for name in names]
        lines.append(
            [row.label, *cells, *([_difference(row)] if extra else []),
             str(len(row.pictures)), str(row.failures)]
        )  # fmt: skip
    return lines


def _difference(row: Row) -> str:
    return interval(row.differences["harmonic"]) if "harmonic" in row.differences else DASH


def interval(found: Mean) -> str:
    """A difference with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def caption(found: Comparison) -> str:
    """What the numbers are."""
    count = f"{len(found.prompts)} × {len(found.seeds)} pictures (prompts × seeds)"
    return (
        f"Means over {count}; failed pictures count as 0. Δ: paired by prompt and seed, with "
        f"{LEVEL} % bootstrap intervals."
    )


def text(found: Comparison) -> str:
    """For a terminal."""
    head, *rows = rows_of(found)
    short = [*head]
    for i, name in enumerate(found.scored):
        short[i + 1] = {"harmonic": "harmonic", "clip_subject": "CLIP-I subj",
                        "clip_style": "CLIP-I style"}.get(name, TITLES[name])  # fmt: skip
    short = [x.replace("Δ harmonic mean to direct merge", "Δ to direct merge") for x in short]
    lines = aligned([short, *rows])
    lines += ["", caption(found)]
    lines += [f"{row.label}: cannot be painted here: {row.reason}"
              for row in found.rows if row.reason]  # fmt: skip
    lines += [f"left out: {name}: {why}" for name, why in found.left_out.items()]
    label = found.verdict.label
    lines += ["", f"recommended: {label}" if label else "recommended: nothing"]
    lines += [found.verdict.reason, f"{found.output}/report.html"]
    return printable(lines)


def printable(lines: Iterable[str]) -> str:
    """Lines as one text without control characters: names and reasons may be a stranger's."""
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def csv_of(found: Comparison) -> str:
    """One line per picture."""
    names = [*found.rows[0].pictures[0].scores]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "prompt_number", "prompt", "seed", "picture", "failure", *names])
    for row in found.rows:
        for one in row.pictures:
            values = [f"{one.scores[name]:.6f}" for name in names]
            writer.writerow(
                [cell(row.label), one.prompt + 1, cell(found.prompts[one.prompt]), one.seed,
                 "" if one.failure and row.reason else one.path, cell(one.failure), *values]
            )  # fmt: skip
    return out.getvalue()


def cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def markdown(found: Comparison) -> str:
    """As a GitHub table."""
    head, *rows = rows_of(found)
    return markdown_of([head, *rows], f"{caption(found)} {_seen_by(found)}")


def markdown_of(rows: Sequence[Sequence[str]], legend: str) -> str:
    """Rows, the head first, as a GitHub table."""
    head, *body = [[_escaped(cell) for cell in row] for row in rows]
    rule = ["---", *("--:" for _ in head[1:])]
    table = "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *body])
    return f"{table}\n{_escaped(legend)}\n"


def _escaped(text: str) -> str:
    plain = " ".join(text.split()).replace("\\", "\\\\")
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", plain) if not _NUMBERS.fullmatch(plain) else plain


_NUMBERS = re.compile(r"[-+.\d\s,\[\]–]*")


def latex(found: Comparison) -> str:
    """As a table for LaTeX with booktabs."""
    head, *rows = rows_of(found)
    return latex_of([head, *rows], f"{caption(found)} {_seen_by(found)}")


def latex_of(rows: Sequence[Sequence[str]], legend: str) -> str:
    """Rows, the head first, as a table for LaTeX with booktabs."""
    head, *body = [[_tex(cell) for cell in row] for row in rows]
    lines = [
        "\\begin{table}", "\\centering", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule", " & ".join(head) + " \\\\", "\\midrule",
        *(" & ".join(row) + " \\\\" for row in body),
        "\\bottomrule", "\\end{tabular}", f"\\caption{{{_tex(legend)}}}", "\\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$", "×": r"$\times$", "–": "--", "−": "$-$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def _seen_by(found: Comparison) -> str:
    if not found.encoders:
        return "No encoders, so no scores."
    each = [
        f"{role.upper()}: {one['name']} (sha256 {one['digest'][:12] or 'unknown'})"
        for role, one in found.encoders.items()
    ]
    return "; ".join(each) + "."
