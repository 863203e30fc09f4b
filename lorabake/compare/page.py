"""`report.html`: one page that opens from the disk, with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ..pipelines.pictures import SUFFIXES
from ..place import expanded, kind
from .comparison import Comparison, Picture, References, Row
from .scores import MEANINGS, STYLE, SUBJECT
from .statistics import LEVEL, RESAMPLES, SEED, Mean
from .tables import DASH, heading, interval
from .variants import DIRECT

_LARGEST = 320
"""Pixels of a picture's longer side in the page; what is larger is made smaller."""
_SMALL = 128
"""Pictures up to this size are shown with their own pixels."""
_SHOWN = 8
"""Reference images in the page at most."""
_FIRST = ("harmonic", "subject", "style", "leak", "dino", "clip_subject", "csd", "clip_style",
          "clip_text")  # fmt: skip
"""Scores in the order of the page, what decides first."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(found: Comparison) -> str:
    """The whole page; every text in it that comes from files or the user is escaped."""
    names = " and ".join(x.name for x in (found.subject, found.style))
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    parts = [
        *_head(found), *_grids(found), *_table(found), *_references(found), *_meanings(found),
        *_origins(found),
    ]  # fmt: skip
    return "\n".join([
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{escape(names)}: which fusion</title>", f"<style>{style}</style>", "</head>",
        "<body><main>", *parts, "</main></body>", "</html>", "",
    ])  # fmt: skip


def _head(found: Comparison) -> Iterator[str]:
    subject, style = escape(found.subject.name), escape(found.style.name)
    variants = sum(not row.anchor for row in found.rows)
    yield '<p class="tag">lorabake compare</p>'
    yield f"<h1>{subject} <i>in the style of</i> {style}</h1>"
    yield (
        f'<p class="facts">{_count(variants, "way")} to fuse the two LoRAs on '
        f"<code>{escape(found.base)}</code>, beside four anchors: "
        f"{_count(len(found.prompts), 'prompt')} × {_count(len(found.seeds), 'seed')}, the same "
        "for all.</p>"
    )
    verdict = found.verdict
    sure = verdict.certain and verdict.label
    title = escape(_named(verdict.label)) if verdict.label else ""
    title = f"Take {title}" if sure else f"Perhaps {title}" if title else "No recommendation"
    badge = f"certain at {LEVEL} %" if sure else "not certain" if verdict.label else "not scored"
    yield f'<section class="verdict{" sure" if sure else ""}">'
    yield f'<span class="badge">{badge}</span><strong>{title}</strong>'
    yield f"<p>{escape(verdict.reason)}</p>"
    if verdict.label and (file := found.row(verdict.label).bundle):
        yield f"<p>Its bundle: <code>{escape(file)}</code></p>"
    yield "</section>"
    left = [f"Left out: {name}. {why}" for name, why in found.left_out.items()]
    if notes := [*found.warnings, *left]:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        yield f'<ul class="warn">{items}</ul>'


def _named(label: str) -> str:
    return f"the {label}" if label == DIRECT else label


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _grids(found: Comparison) -> Iterator[str]:
    yield "<h2>Pictures</h2>"
    for i, prompt in enumerate(found.prompts):
        yield f"<h3>{escape(prompt)}</h3>"
        yield '<div class="scroll grid" tabindex="0"><table><thead><tr><th class="stay">seed</th>'
        for j, row in enumerate(found.rows):
            score = row.means.get("harmonic")
            small = f"<small>{score.mean:.3f}</small>" if score else ""
            yield f'<th class="{_kind(found, j)}">{escape(row.label)}{small}</th>'
        yield "</tr></thead><tbody>"
        for k, seed in enumerate(found.seeds):
            cells = "".join(_cells(found, i, k))
            yield f'<tr><th class="stay">{seed}</th>{cells}</tr>'
        yield "</tbody></table></div>"
    if "harmonic" in found.rows[0].means:
        yield '<p class="note">Under each name: harmonic mean of subject and style, over all '
        yield "pictures. A picture leads to its file in full size.</p>"


def _kind(found: Comparison, j: int) -> str:
    row = found.rows[j]
    best = " best" if row.label == found.verdict.label else ""
    return ("anchor" if row.anchor else "own") + best


def _cells(found: Comparison, prompt: int, k: int) -> Iterator[str]:
    for j, row in enumerate(found.rows):
        one = row.pictures[prompt * len(found.seeds) + k]
        if row.reason:
            if k == 0:
                rows = len(found.seeds)
                yield f'<td class="why" rowspan="{rows}">cannot run here: {escape(row.reason)}</td>'
        elif one.failure:
            yield f'<td class="{_kind(found, j)}"><div class="failed">failed: '
            yield f"{escape(one.failure[:160])}</div></td>"
        else:
            yield f'<td class="{_kind(found, j)}">{_linked(found, row, one)}</td>'


def _linked(found: Comparison, row: Row, one: Picture) -> str:
    alt = f"{row.label}, seed {one.seed}: {found.prompts[one.prompt]}"
    image = _image(Path(found.output) / one.path, alt)
    return f'<a href="{escape(quote(one.path))}">{image}</a>'


def _image(path: Path, alt: str) -> str:
    """An `img` with the picture in it; larger ones become JPEG."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    small = max(whole.size) <= _SMALL
    whole.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    data, form = io.BytesIO(), "PNG" if small else "JPEG"
    whole.save(data, form, **({} if small else {"quality": 88}))
    text = base64.b64encode(data.getvalue()).decode()
    kind = ' class="small"' if small else ""
    width, height = whole.size
    return (
        f'<img{kind} src="data:image/{form.lower()};base64,{text}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )


def _table(found: Comparison) -> Iterator[str]:
    names = sorted(found.scored, key=_FIRST.index)
    if not names:
        return
    yield "<h2>Scores</h2>"
    yield '<div class="scroll scores" tabindex="0"><table><thead><tr><th class="stay"></th>'
    for name in names:
        group = "subject" if name in SUBJECT else "style" if name in STYLE else ""
        small = f"<small>{group}</small>" if group else ""
        title = heading(name).partition(" (")[0] if group else heading(name)
        yield f"<th>{escape(title)}{small}</th>"
        if name == "harmonic":
            yield "<th>Δ harmonic mean<small>to the direct merge</small></th>"
    yield "<th>failed</th></tr></thead><tbody>"
    reach = max((_reach(row.differences.get("harmonic")) for row in found.rows), default=0.0)
    own = [row for row in found.rows if not row.anchor]
    for j, row in enumerate(found.rows):
        first = " first" if own and row is own[0] else ""
        yield f'<tr class="{_kind(found, j)}{first}"><th class="stay">{escape(row.label)}'
        yield '<div class="why">cannot run here</div></th>' if row.reason else "</th>"
        for name in names:
            tops = {x.label: x.means[name].mean for x in found.rows if not x.anchor}
            top = not row.anchor and name != "leak" and tops[row.label] == max(tops.values())
            yield _score(row.means[name], top=top)
            if name == "harmonic":
                yield _difference(row.differences.get("harmonic"), reach)
        yield f"<td>{row.failures} of {len(row.pictures)}</td></tr>"
    yield "</tbody></table></div>"
    count = len(found.prompts) * len(found.seeds)
    yield f'<p class="note">Means over {count} pictures each, below them {LEVEL} % intervals; '
    yield "failed pictures count as 0 and are never dropped. Bold: the highest of the methods. "
    yield "Δ is paired by prompt and seed. Intervals are percentiles of "
    yield f"{RESAMPLES} bootstrap resamples (seed {SEED}) of the pictures. The best of several is "
    yield "found on the same pictures that it is measured on, which flatters it a little.</p>"


def _score(one: Mean, *, top: bool) -> str:
    small = ""
    if one.low is not None and one.high is not None:
        small = f"<small>{one.low:.3f} to {one.high:.3f}</small>"
    return f"<td{' class=top' if top else ''}>{one.mean:.3f}{small}</td>"


def _reach(one: Mean | None) -> float:
    return max(map(abs, (one.mean, one.low or 0.0, one.high or 0.0))) if one else 0.0


def _difference(one: Mean | None, reach: float) -> str:
    """The difference in numbers, and as a line with a dot around zero."""
    if one is None:
        return f"<td>{DASH}</td>"
    width, height, half = 132, 14, 60
    scale = half / reach if reach else 0.0

    def x(value: float) -> str:
        return f"{width / 2 + value * scale:.1f}"

    span = ""
    if one.low is not None and one.high is not None:
        middle = height / 2
        span = f'<line class="span" x1="{x(one.low)}" x2="{x(one.high)}" y1="{middle}" '
        span += f'y2="{middle}"/>'
    side = {1: "up", -1: "down", 0: "level"}[one.side]
    return (
        f"<td>{interval(one).replace(' [', ' <small>[').replace(']', ']</small>')}"
        f'<svg width="{width}" height="{height}" role="img" aria-label="{interval(one)}">'
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="{height}"/>'
        f'<g class="{side}">{span}<circle class="dot" cx="{x(one.mean)}" cy="{height / 2}" '
        'r="4"/></g></svg></td>'
    )


def _references(found: Comparison) -> Iterator[str]:
    yield '<h2>Compared with</h2><div class="pair">'
    for role, of in (("Subject", found.subject), ("Style", found.style)):
        how = (
            f'painted by {escape(of.name)} alone of "{escape(of.prompt)}"'
            if of.prompt is not None
            else "given as images"
        )
        yield f"<div><h3>{role}: {how}</h3><div class=thumbs>"
        for path in _shown(found, of):
            yield _image(path, f"{role} of {of.name}")
        yield "</div></div>"
    yield "</div>"


def _shown(found: Comparison, of: References) -> Sequence[Path]:
    if of.prompt is not None:
        return [Path(found.output) / path for path in of.images]
    places = [expanded(place) for place in of.images]
    each: list[Path] = []
    for place in places:
        inside = sorted(place.iterdir()) if kind(place) == "folder" else [place]
        each += [x for x in inside if x.suffix.lower() in SUFFIXES and x.name[0] != "."]
    return each[:_SHOWN]


def _meanings(found: Comparison) -> Iterator[str]:
    if not found.scored:
        return
    yield "<h2>What the numbers are</h2><dl>"
    for name in found.scored:
        yield f"<dt>{escape(heading(name))}</dt><dd>{escape(MEANINGS[name])}</dd>"
    yield "</dl>"


def _origins(found: Comparison) -> Iterator[str]:
    yield "<h2>Encoders</h2>"
    rows = [(role.upper(), x["name"], x["digest"]) for role, x in found.encoders.items()]
    yield from _files(rows or [("none", "nothing was scored", "")])
    yield "<h2>LoRAs and bundles</h2>"
    yield from _files(
        [
            ("content", found.subject.name, found.subject.sha256),
            ("style", found.style.name, found.style.sha256),
            *((row.label, row.bundle, row.digest) for row in found.rows if row.bundle),
        ]
    )
    yield "<h2>Do it again</h2>"
    yield f"<pre>{escape(found.command)}</pre>"


def _files(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield '<div class="scroll files"><table>'
    for role, name, digest in rows:
        told = f"<code>sha256 {escape(digest)}</code>" if digest else ""
        yield f"<tr><th>{escape(role)}</th><td>{escape(name)}</td><td>{told}</td></tr>"
    yield "</table></div>"
