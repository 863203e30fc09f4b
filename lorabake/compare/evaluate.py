"""`evaluate`: the same comparison for many pairs of LoRAs, and one table over all of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import output
from ..device import device as device_named
from ..errors import RecipeError, UserError
from . import pairs as tables_of_pairs
from .baking import Tell
from .job import Job, prepare
from .judges import load_judges
from .pairs import Pair
from .request import Setup, claim, slug
from .run import carry_out, renderer_for
from .statistics import LEVEL, Mean, mean
from .tables import DASH, aligned, cell, interval, latex_of, markdown_of, printable
from .variants import DIRECT, variants
from .verdict import Verdict, verdict

_MARK = "pairs.csv"
_COLUMNS = {"clip_style": "Style Sim", "clip_subject": "CLIP score", "dino": "DINO", "csd": "CSD",
            "clip_text": "CLIP-T", "leak": "leak", "harmonic": "harmonic mean"}  # fmt: skip
"""As the papers name them: both of the first are CLIP's, image to image."""


@dataclass(frozen=True)
class Line:
    """One method over all pairs.

    Attributes:
        label: What it is called.
        means: Mean over pairs of each score's mean over the pair's pictures.
        differences: Mean over pairs of the difference to the direct merge.
        pictures: Number of pictures.
        failures: How many of them show nothing; they count as 0.
    """

    label: str
    means: Mapping[str, Mean]
    differences: Mapping[str, Mean]
    pictures: int
    failures: int


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation has come to.

    Attributes:
        output: Folder of everything that was written.
        pairs: Names of all pairs.
        missing: Names of those that are not done yet, by other shards for example.
        lines: One per method; none until all pairs are done.
        verdict: The method with the highest harmonic mean; None until all pairs are done.
        encoders: Name and digest of each encoder.
        warnings: What the user should know, a sentence each.
    """

    output: str
    pairs: tuple[str, ...]
    missing: tuple[str, ...]
    lines: tuple[Line, ...]
    verdict: Verdict | None
    encoders: Mapping[str, Mapping[str, str]]
    warnings: tuple[str, ...]

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the scores that there are, in the order of the table."""
        return tuple(name for name in _COLUMNS if self.lines and name in self.lines[0].means)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"level_percent": LEVEL, "resampled": "pairs"}

    def __str__(self) -> str:
        if self.verdict is None:
            done = len(self.pairs) - len(self.missing)
            return f"{self.output}: {done} of {len(self.pairs)} pairs are done"
        best = self.verdict.label or "nothing"
        return printable([
            *aligned(_rows(self)), "", _legend(self), "", f"recommended: {best}",
            self.verdict.reason, f"{self.output}/table.md",
        ])  # fmt: skip


def evaluate(
    pairs: str | Path,
    folder: str | Path,
    base: str | Path,
    *,
    setup: Setup | None = None,
    shard: tuple[int, int] | None = None,
    progress: Tell | None = None,
) -> Evaluation:
    """Compare the ways to fuse each of many pairs, and write one table over all.

    Every pair is a comparison (`compare_fusions`) in `pairs/NAME`; pictures of base, content only
    and style only are shared where pairs have a LoRA and a prompt in common. What is done is not
    done again, so that the same call goes on where it was interrupted.

    Args:
        pairs: CSV file, see `pairs.read`.
        folder: Where everything goes: a new folder, or that of an earlier call.
        base: Base model, a folder in diffusers format or a hub id.
        setup: How pairs are compared; every method that needs nothing more than what every row
            gives if None.
        shard: (i, n) does every n-th pair from the i-th on, counted from 1; several of these may
            run at once, in one folder or on several machines that share it.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range.
    """
    where, tell = Path(folder), progress or (lambda stage, done, total: None)
    all_pairs = tables_of_pairs.read(pairs, str(base))
    how = _common(setup or Setup(), all_pairs)
    wanted = _shard(all_pairs, shard)
    claim(where, _MARK)
    jobs: dict[str, Job] = {}
    for pair in all_pairs:
        with _about(pair):
            jobs[pair.name] = prepare(pair.request, how, where / "pairs" / slug(pair.name))
    output.folder(where)
    _write(where / _MARK, Path(pairs).expanduser().read_text(encoding="utf-8-sig"))
    judges = load_judges(base, how.encoders(), device_named(how.device))
    keys = {name: job.key(judges) for name, job in jobs.items()}
    first = next(iter(jobs.values()))
    renderer = renderer_for(str(base), how, first.inputs, where / "anchors")
    warnings: list[str] = []
    for i, pair in enumerate(wanted):
        tell(f"{pair.name}, pair", i, len(wanted))
        if _done(jobs[pair.name], keys[pair.name]) is None:
            with _about(pair):
                found = carry_out(jobs[pair.name], judges, renderer, tell)
            warnings += [f"{pair.name}: {text}" for text in found.warnings]
    results = {name: _done(job, keys[name]) for name, job in jobs.items()}
    finished = {name: told for name, told in results.items() if told is not None}
    evaluation = _evaluation(where, jobs, finished, tuple(warnings))
    if evaluation.verdict is not None:
        _write_all(where, evaluation, finished)
    return evaluation


def _common(setup: Setup, all_pairs: Sequence[Pair]) -> Setup:
    """The setup with the methods that every row has enough for, if none are named."""
    if setup.methods or setup.presets or setup.bundles:
        return setup
    given = [pair.request.given() for pair in all_pairs]
    shared = {name: given[0][name] for name in set.intersection(*map(set, given))}
    found = variants((), (), (), given=shared)
    return replace(setup, methods=tuple(variant.label for variant in found))


def _shard(all_pairs: Sequence[Pair], shard: tuple[int, int] | None) -> Sequence[Pair]:
    number, count = shard or (1, 1)
    if not 1 <= number <= count:
        raise RecipeError(
            f"there is no shard {number} of {count}", where="shard", advice="Give 1/4 to 4/4 say"
        )
    return all_pairs[number - 1 :: count]


@contextlib.contextmanager
def _about(pair: Pair) -> Generator[None]:
    """Say of an error inside which pair it is about."""
    try:
        yield
    except UserError as error:
        where = f"pair {pair.name}: {error.where}" if error.where else f"pair {pair.name}"
        raise type(error)(error.what, where=where, advice=error.advice) from error


def _done(job: Job, key: str) -> dict[str, Any] | None:
    """What a pair has come to, if all of it is there and was made of the same."""
    try:
        told: dict[str, Any] = json.loads((job.folder / "scores.json").read_text(encoding="utf-8"))
        pictures = [x for row in told["rows"] for x in row["pictures"] if not x["failure"]]
        files = [*(x["path"] for x in pictures), "scores.csv"]
        whole = told["key"] == key and all((job.folder / x).exists() for x in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told if whole else None


def _evaluation(
    folder: Path,
    jobs: Mapping[str, Job],
    finished: Mapping[str, dict[str, Any]],
    warnings: tuple[str, ...],
) -> Evaluation:
    missing = tuple(name for name in jobs if name not in finished)
    if missing:
        return Evaluation(str(folder), tuple(jobs), missing, (), None, {}, warnings)
    tables = [finished[name]["rows"] for name in jobs]
    labels = [row["label"] for row in tables[0]]
    scores = [*tables[0][0]["means"]]
    whole = {
        (label, score): np.array([_named(rows, label)["means"][score]["mean"] for rows in tables])
        for label in labels
        for score in scores
    }
    lines = tuple(
        Line(
            label,
            {score: mean(whole[label, score]) for score in scores},
            {score: mean(whole[label, score] - whole[DIRECT, score]) for score in scores}
            if label != DIRECT
            else {},
            sum(len(_named(rows, label)["pictures"]) for rows in tables),
            sum(_named(rows, label)["failures"] for rows in tables),
        )
        for label in labels
    )
    anchors = {row["label"] for row in tables[0] if row["anchor"]} - {DIRECT}
    candidates = {
        label: whole[label, "harmonic"]
        for label in labels
        if "harmonic" in scores and label not in anchors
    }
    return Evaluation(
        str(folder), tuple(jobs), (), lines, verdict(candidates, unit="pairs"),
        finished[next(iter(jobs))]["encoders"], warnings,
    )  # fmt: skip


def _named(rows: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    return next(row for row in rows if row["label"] == label)


def _rows(found: Evaluation) -> list[list[str]]:
    """Head and rows of the table, each mean with its interval over pairs."""
    names = found.scored
    extra = ["Δ to direct merge"] if "harmonic" in names else []
    lines = [["", *(_COLUMNS[name] for name in names), *extra, "n", "failed"]]
    for line in found.lines:
        difference = line.differences.get("harmonic")
        cells = [str(line.means[name]) for name in names]
        change = [interval(difference) if difference else DASH] if extra else []
        lines.append([line.label, *cells, *change, str(line.pictures), str(line.failures)])
    return lines


def _legend(found: Evaluation) -> str:
    seen = "; ".join(
        f"{role.upper()}: {one['name']} (sha256 {one['digest'][:12] or 'unknown'})"
        for role, one in found.encoders.items()
    )
    return (
        f"Means over {len(found.pairs)} pairs with {LEVEL} % bootstrap intervals over pairs; n: "
        "pictures, of which failed ones count as 0. Style Sim and CLIP score: CLIP-I to the style "
        "and to the subject images. Δ: of the harmonic mean, paired by pair. "
        f"{seen or 'No encoders, so no scores'}."
    )


def _write_all(
    folder: Path, found: Evaluation, finished: Mapping[str, dict[str, Any]]
) -> None:  # fmt: skip
    rows = _rows(found)
    _write(folder / "table.md", markdown_of(rows, _legend(found)))
    _write(folder / "table.tex", latex_of(rows, _legend(found)))
    _write(folder / "scores.csv", _csv(folder, finished, found.pairs))
    told = {k: v for k, v in found.to_json().items() if k not in ("warnings", "output")}
    _write(folder / "scores.json", json.dumps(told, indent=1) + "\n")


def _csv(folder: Path, finished: Mapping[str, object], names: Sequence[str]) -> str:
    """The lines of all pairs' files, each with its pair's name."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for i, name in enumerate(names):
        path = folder / "pairs" / slug(name) / "scores.csv"
        head, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        writer.writerows([["pair", *head]] if i == 0 else [])
        writer.writerows([cell(name), *line] for line in lines)
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    with output.replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))
