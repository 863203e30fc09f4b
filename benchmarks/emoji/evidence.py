r"""Does fusing help, and which method most? Every method on the emoji world, paired.

Held-out subjects in held-out styles, for which artists have drawn the right answer. Settings (the
direct merge's strengths, each method's guidance scale) are chosen on the pairs and seeds of
`tune`; the table of `report` is of other pairs and other seeds. Pictures are scored as they are
made; a run that was interrupted goes on.

    python -m benchmarks.emoji.evidence tune report table [--kind robust|fragile] [--out evidence]

Other subjects and styles (`python -m benchmarks.emoji.train --help` tells how to train them):

    python -m benchmarks.emoji.evidence tune report table --world mine --subjects snail=animal \
        --styles mine=xjy --tune-subjects turtle
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import lorabake
from lorabake.pipelines.generate import gated
from lorabake.pipelines.load import load
from lorabake.pipelines.quiet import quiet
from lorabake.runtime.plan import Half

from .scorer import WEIGHTS, Scorer, distance, score
from .shown import HERE, MODEL
from .world import (
    KNOWN,
    NEW_STYLES,
    STYLE_WORDS,
    SUBJECT_WORD,
    SUBJECTS,
    caption,
)

TUNED = ("turtle", "burger")
"""Subjects for choosing settings; the others are for the report."""
STEPS = 25
HALVES: tuple[Half, ...] = ("both", "conditional")
SCALES = (1.5, 2.0, 3.0, 5.0)
GRID = (0.25, 0.5, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Pair:
    """A subject and a style, with the words of their LoRAs."""

    subject: str
    kind: str
    style: str
    word: str

    @property
    def name(self) -> str:
        """For file names and tables."""
        return f"{self.subject}-{self.style}"

    @property
    def prompt(self) -> str:
        """Both trigger words."""
        return caption(f"{SUBJECT_WORD} {self.kind}", style=self.word)

    @property
    def own(self) -> dict[str, Any]:
        """What each LoRA is asked alone, as a method's parameters."""
        return {
            "content_prompt": caption(f"{SUBJECT_WORD} {self.kind}"),
            "style_prompt": caption(KNOWN, style=self.word),
        }


@dataclass(frozen=True)
class Variant:
    """A row of the table: how a bundle is made and replayed.

    Attributes:
        label: Plain name.
        method: Of `make`; `base` for no LoRA at all.
        params: Of the method.
        gates: Constant gates of content and style instead of a plan.
        half: In which half of guidance the LoRAs act.
        scale: Guidance scale.
        steps: Denoising steps.
        fewstep: Whether the few-step LoRA is loaded beside it.
        overrides: Of `attach`.
    """

    label: str
    method: str = "direct"
    params: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[float, float] | None = None
    half: Half = "both"
    scale: float = 3.0
    steps: int = STEPS
    fewstep: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What determines the pictures, as a short text."""
        told = [
            self.method, dict(self.params), self.gates, self.half, self.scale, self.steps,
            self.fewstep, dict(self.overrides),
        ]  # fmt: skip
        return f"{zlib.crc32(json.dumps(told, sort_keys=True).encode()):08x}"


METHODS: tuple[Variant, ...] = (
    Variant("K-LoRA", "klora"),
    Variant("K-LoRA, S*", "klora", {"pattern": "modulo"}),
    Variant("K-LoRA × 1.4", "klora", overrides={"content_strength": 1.4, "style_strength": 1.4}),
    Variant("EST-LoRA", "est"),
    Variant("fixed: content, then style", "fixed"),
    Variant("random layers", "random"),
    Variant("switch", "switch"),
    Variant("ZipLoRA, trained", "ziplora"),
    Variant("ZipLoRA, layerwise", "ziplora-layerwise"),
    Variant("dynamic (FLS)", "dynamic", {"guide": "off"}),
)
ANCHORS: tuple[Variant, ...] = (
    Variant("base", "base"),
    Variant("content only", gates=(1.0, 0.0)),
    Variant("style only", gates=(0.0, 1.0)),
    Variant("direct (1, 1)", gates=(1.0, 1.0)),
    Variant("direct (.7, .7)", gates=(0.7, 0.7)),
    Variant("direct (.5, .5)", gates=(0.5, 0.5)),
)


class Bench:
    """The pipeline, the scorer, and what was measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.pipe: Any = load(MODEL, device=torch.device("cpu"))
        own = options.world / "scorer.safetensors"
        self.scorer = Scorer.load(own if own.exists() else WEIGHTS)
        self.bundles = tempfile.TemporaryDirectory()
        self.fewstep = False

    def lora(self, name: str) -> Path:
        """A LoRA of the given world, else of the shipped one."""
        file = Path("loras") / f"{name}-{self.options.kind}.safetensors"
        return next(p for p in (self.options.world / file, HERE / file) if p.exists())

    def bundle(self, pair: Pair, variant: Variant) -> lorabake.Bundle:
        """Made once per pair and method."""
        told = json.dumps([pair.name, variant.method, dict(variant.params)], sort_keys=True)
        path = Path(self.bundles.name) / f"{zlib.crc32(told.encode()):08x}.safetensors"
        if not path.exists():
            params = dict(variant.params)
            if "ziplora" in variant.method:
                params |= pair.own | {"reference_guidance": variant.scale}
            lorabake.make(
                self.lora(pair.subject), self.lora(pair.style), path, method=variant.method,
                base=MODEL, **params,
            )  # fmt: skip
        bundle = lorabake.load(path)
        return gated(bundle, variant.gates) if variant.gates else bundle

    def render(self, pair: Pair, variant: Variant, seeds: Sequence[int]) -> list[Image.Image]:
        """One picture per seed, all in one batch."""
        self._load_fewstep(variant.fewstep)
        attached: AbstractContextManager[Any] = nullcontext()
        if variant.method != "base":
            bundle = self.bundle(pair, variant)
            half: Half = variant.half if variant.scale > 1 else "both"
            attached = bundle.attach(self.pipe, half=half, **variant.overrides)
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with attached, quiet():
            return self.pipe(
                [pair.prompt] * len(noise), num_inference_steps=variant.steps,
                guidance_scale=variant.scale, generator=noise,
            ).images  # fmt: skip

    def _load_fewstep(self, wanted: bool) -> None:
        if wanted and not self.fewstep:
            self.pipe.load_lora_weights(str(HERE / "loras" / "fewstep.safetensors"))
        elif self.fewstep and not wanted:
            self.pipe.unload_lora_weights()
        self.fewstep = wanted

    def measure(
        self, pair: Pair, variant: Variant, seeds: Sequence[int], stage: str
    ) -> list[dict[str, Any]]:
        """Scores per picture, from the file of this stage where they are there."""
        path = self.out / stage / f"{pair.name}-{variant.key}.json"
        if path.exists():
            rows = json.loads(path.read_text())
            if [row["seed"] for row in rows] == list(seeds):
                return rows
        images = self.render(pair, variant, seeds)
        told = score(images, pair.subject, pair.style, self.scorer)
        truths = self.truths(pair)
        far = distance(images, truths) if truths else torch.full((len(images),), torch.nan)
        rows = [
            {"pair": pair.name, "label": variant.label, "half": variant.half,
             "scale": variant.scale, "steps": variant.steps, "seed": seed, "subject": float(c),
             "style": float(s), "both": float(b), "distance": float(d)}
            for seed, c, s, b, d in zip(
                seeds, told.subject, told.style, told.product, far, strict=True
            )
        ]  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        if stage == "report":
            wide = np.concatenate([np.asarray(image) for image in images[:8]], 1)
            Image.fromarray(wide).save(path.with_suffix(".png"))
        path.write_text(json.dumps(rows))
        return rows

    def truths(self, pair: Pair) -> list[Image.Image]:
        """True pictures, where there are any."""
        folders = (self.options.world / "truths", HERE / "truths")
        found = [p for folder in folders for p in sorted(folder.glob(f"{pair.name}*.png"))]
        return [Image.open(path).convert("RGB") for path in found]


def tune(bench: Bench, pairs: Sequence[Pair]) -> None:
    """Choose guidance scales and the best direct merge, for either half; writes `tuned.json`."""
    seeds = range(4)
    chosen: dict[str, Any] = {}

    def mean(variant: Variant) -> float:
        rows = [row for pair in pairs for row in bench.measure(pair, variant, seeds, "tune")]
        return float(np.mean([row["both"] for row in rows]))

    for half in HALVES:
        merge = Variant("direct", gates=(0.7, 0.7), half=half)
        scales = {s: mean(replace(merge, scale=s)) for s in SCALES}
        best = max(scales, key=lambda s: scales[s])
        grid = {
            gates: mean(replace(merge, gates=gates, scale=best))
            for gates in tqdm([*product(GRID, GRID)], f"grid, {half}")
        }
        gates = max(grid, key=lambda g: grid[g])
        chosen[f"best direct, {half}"] = {"gates": gates, "scale": best, "value": grid[gates]}
        for method in tqdm(METHODS, f"methods, {half}"):
            scales = {s: mean(replace(method, half=half, scale=s)) for s in SCALES}
            best = max(scales, key=lambda s: scales[s])
            chosen[f"{method.label}, {half}"] = {"scale": best, "value": scales[best]}
    (bench.out / "tuned.json").write_text(json.dumps(chosen, indent=1))


def rows_of(bench: Bench) -> list[Variant]:
    """Every row of the report, with the settings that were chosen."""
    tuned = json.loads((bench.out / "tuned.json").read_text())
    rows = [*ANCHORS]
    for half in HALVES:
        best = tuned[f"best direct, {half}"]
        label = "best direct of a grid"
        rows.append(Variant(label, gates=tuple(best["gates"]), half=half, scale=best["scale"]))
        if half == "conditional":
            rows += [replace(a, half=half, scale=best["scale"]) for a in ANCHORS[3:]]
        for method in METHODS:
            scale = tuned[f"{method.label}, {half}"]["scale"]
            rows.append(replace(method, half=half, scale=scale))
    quick = [*ANCHORS[1:5], *METHODS]
    if (HERE / "loras" / "fewstep.safetensors").exists():
        rows += [replace(v, steps=4, scale=1.0, fewstep=True) for v in quick]
    return rows


def report(bench: Bench, pairs: Sequence[Pair]) -> None:
    """Render and score every row on pairs and seeds that `tune` has not seen."""
    options = bench.options
    seeds = range(options.first, options.first + options.seeds)
    for pair in tqdm(pairs, "pairs"):
        for variant in tqdm(rows_of(bench), pair.name, leave=False):
            bench.measure(pair, variant, seeds, "report")


def table(bench: Bench, pairs: Sequence[Pair]) -> None:
    """Write `scores.csv` and `table.md`: means, 95 % intervals, differences to direct (1, 1)."""
    options = bench.options
    seeds = range(options.first, options.first + options.seeds)
    found = {
        v: [r for p in pairs for r in bench.measure(p, v, seeds, "report")] for v in rows_of(bench)
    }
    every = [row for rows in found.values() for row in rows]
    with (bench.out / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*every[0]])
        writer.writeheader()
        writer.writerows(every)
    lines = [*_lines(found, len(pairs), len(seeds))]
    (bench.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _lines(found: Mapping[Variant, list[dict[str, Any]]], pairs: int, seeds: int) -> Iterator[str]:
    def grid(rows: list[dict[str, Any]], key: str) -> np.ndarray:
        return np.array([row[key] for row in rows]).reshape(pairs, seeds)

    reference = next(rows for v, rows in found.items() if v == ANCHORS[3])
    yield "| | half | steps | guidance | subject | style | both | minus direct (1, 1) | distance |"
    yield "| --- | --- |" + " ---: |" * 7
    ranked = sorted(found.items(), key=lambda item: -float(grid(item[1], "both").mean()))
    for variant, rows in ranked:
        both, base = grid(rows, "both"), grid(reference, "both")
        low, high = interval(both)
        less, more = interval(both - base)
        yield (
            f"| {variant.label} | {variant.half if variant.scale > 1 else '–'} | {variant.steps} "
            f"| {variant.scale:g} | {grid(rows, 'subject').mean():.2f} "
            f"| {grid(rows, 'style').mean():.2f} | **{both.mean():.2f}** [{low:.2f}, {high:.2f}] "
            f"| {(both - base).mean():+.2f} [{less:+.2f}, {more:+.2f}] "
            f"| {np.nanmean(grid(rows, 'distance')):.3f} |"
        )


def interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of [pairs, seeds]; pairs are drawn, then their seeds."""
    rng = np.random.default_rng(0)
    pairs, seeds = values.shape
    which = rng.integers(pairs, size=(draws, pairs, 1))
    inner = rng.integers(seeds, size=(draws, pairs, seeds))
    means = values[which, inner].mean((1, 2))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _named(given: Sequence[str] | None, known: Mapping[str, str]) -> dict[str, str]:
    if given is None:
        return dict(known)
    pairs = [text.partition("=") for text in given]
    return {name: value or known[name] for name, _, value in pairs}


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="+", choices=["tune", "report", "table"])
    parser.add_argument("--kind", choices=["robust", "fragile"], default="robust")
    parser.add_argument(
        "--world", type=Path, default=HERE, help="folder with loras/, scorer, truths/"
    )
    parser.add_argument("--subjects", nargs="*", metavar="THING[=KIND]")
    parser.add_argument("--tune-subjects", nargs="*", default=list(TUNED), metavar="THING")
    parser.add_argument("--styles", nargs="*", metavar="NAME[=WORD]")
    parser.add_argument("--all", action="store_true", help="every subject in every style, not half")
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--first", type=int, default=1000, help="first seed of the report")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subjects = _named(options.subjects, {k: v for k, v in SUBJECTS.items() if k not in TUNED})
    styles = _named(options.styles, STYLE_WORDS)
    reported = [Pair(c, k, s, w) for c, k in subjects.items() for s, w in styles.items()]
    if not options.all:
        # Each subject in two of the styles, each style as often as the others.
        n = len(styles)
        reported = [p for i, p in enumerate(reported) if (i // n + i % n) % 2 == 0]
    tuned = [
        Pair(c, SUBJECTS[c], s, STYLE_WORDS[s])
        for c in options.tune_subjects for s in NEW_STYLES
    ]  # fmt: skip
    bench = Bench(options)
    if not reported:
        sys.exit("no pair to report")
    stages = {"tune": (tune, tuned), "report": (report, reported), "table": (table, reported)}
    for stage in options.stages:
        run, pairs = stages[stage]
        run(bench, pairs)


if __name__ == "__main__":
    main()
