"""What do the open choices of dynamic fusion do? Every variant on the toy world, scored.

Three pairs of the toy world's LoRAs, the same seeds for each row; what layers chose, R of the last
refined step, and the scores of the pictures. The encoders are the toy world's own, not CLIP and
DINO.

    python benchmarks/dynamic_study.py [--seeds 8] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lorabake
from lorabake.demo.scorer import score
from lorabake.demo.showcase import (
    CLIP,
    DINO,
    FIRST_SEED,
    GUIDANCE,
    HERE,
    MODEL,
    picture_prompt,
    reference_prompts,
    render,
)
from lorabake.pipelines import load
from lorabake.pipelines.generate import gated
from lorabake.runtime import Replay

PAIRS = (("tikku", "glass"), ("mobbo", "neon"), ("snorb", "blueprint"))
FLS: dict[str, dict[str, Any]] = {
    **{f"FLS {name}": {"criterion": name} for name in ("kl", "js", "cosine", "dot")},
    "FLS kl, temperature 4": {"temperature": 4.0},
    "FLS kl, whole batch decides": {"scope": "batch"},
    **{f"FLS kl, {n} of 256 tokens": {"tokens": n} for n in (16, 64)},
}
LLR: dict[str, dict[str, Any]] = {
    "FLS kl, R only looked at": {"m": 0.0},
    **{
        f"FLS kl + LLR through {through}, m = {m:g}": {"m": m, "through": through}
        for through in ("latents", "denoiser")
        for m in (10.0, 50.0)
    },
    "FLS kl + LLR through denoiser, every 5th": {"every": 5},
}


@dataclass
class Figures:
    """One row: a value per pair."""

    subject: list[float] = field(default_factory=list[float])
    style: list[float] = field(default_factory=list[float])
    both: list[float] = field(default_factory=list[float])
    chosen: list[float] = field(default_factory=list[float])
    alike: list[float] = field(default_factory=list[float])
    last: list[float] = field(default_factory=list[float])

    def __str__(self) -> str:
        cells = [self.subject, self.style, self.both, self.chosen, self.alike, self.last]
        return " | ".join(f"{sum(c) / len(c):.3f}" if c else "–" for c in cells)


def choices(replay: Replay) -> list[int]:
    """All live decisions, in order."""
    layers = replay.report()["layers"]
    return [one for x in layers for p in x["decisions"] for call in p for one in call or ()]


def study(subject: str, style: str, seeds: int, rows: dict[str, Figures], bar: Any) -> None:  # noqa: ANN401 - a tqdm bar
    """Add one pair's values to the rows."""
    pipe = load(MODEL, device=torch.device("cpu"))
    content, look = (HERE / "loras" / f"{name}.safetensors" for name in (subject, style))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bundle.safetensors")
        lorabake.make(
            content, look, path, method="dynamic", base=MODEL, clip=str(CLIP), dino=str(DINO),
            reference_guidance=GUIDANCE, **reference_prompts(subject, style),
        )  # fmt: skip
        bundle = lorabake.load(path)
        seeing = lorabake.encoders(bundle, CLIP, DINO)
        first: list[int] = []

        def row(label: str, on: AbstractContextManager[Replay | None]) -> None:
            into = rows.setdefault(label, Figures())
            with on as replay:
                images = render(
                    pipe, picture_prompt(subject, style), range(FIRST_SEED, FIRST_SEED + seeds)
                )
            scores = score(images, subject, style)
            into.subject.append(float(scores.subject.mean()))
            into.style.append(float(scores.style.mean()))
            into.both.append(float(scores.product.mean()))
            if replay is not None and (found := choices(replay)):
                first.extend([] if first else found)
                into.chosen.append(sum(found) / len(found))
                into.alike.append(sum(map(int.__eq__, found, first)) / len(found))
            if replay is not None and (steps := replay.report()["guidance"]):
                into.last.append(sum(steps[-1]["score"]) / seeds)
            bar.update()

        row("base", nullcontext())
        row("direct merge", gated(bundle, (1.0, 1.0)).attach(pipe))
        for label, values in FLS.items():
            row(label, bundle.attach(pipe, guidance=False, **values))
        for label, values in LLR.items():
            row(label, bundle.attach(pipe, encoders=seeing, **values))


def main() -> None:
    """Read the options, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Figures] = {}
    with tqdm(total=len(PAIRS) * (2 + len(FLS) + len(LLR)), disable=None) as bar:
        for subject, style in PAIRS:
            study(subject, style, options.seeds, rows, bar)
    print("| | subject | style | both | chosen style | decisions as FLS kl | R at the end |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for label, figures in rows.items():
        print(f"| {label} | {figures} |")


if __name__ == "__main__":
    main()
