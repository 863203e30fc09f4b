"""What does choosing live cost? Feature-level selection beside PEFT with two active adapters.

A pair of random LoRAs is baked with the method dynamic and replayed in models of real shapes with
random weights, from given embeddings to latents, in alternating rounds. Then: how many decisions
stay the same where 256 tokens stand for all.

    python benchmarks/live.py [tiny] [sdxl] [flux] [--device cuda] [--steps 10] [--repeats 5]
        [--rank 64] [--size 256] [--seed 0] [--threads 2]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from models import SDXL, TINY, flux_pipe, unet_pipe, write
from tqdm import tqdm

import lorabake
from lorabake.errors import UserError
from lorabake.pipelines.bench import compare, markdown
from lorabake.runtime import Bundle


def agreement(pipe: Any, bundle: Bundle, paint: Any, steps: int) -> float:  # noqa: ANN401 - any pipeline, a painter
    """Share of the first step's decisions that 256 tokens make as all do."""
    rows: list[list[Any]] = []
    for count in (0, 256):
        with bundle.attach(pipe, tokens=count) as replay:
            paint(steps)
        layers = replay.report()["layers"]
        rows.append([c for x in layers for p in x["decisions"][:1] for y in p for c in y or ()])
    return sum(a == b for a, b in zip(*rows, strict=True)) / len(rows[0])


def run(model: str, options: argparse.Namespace) -> None:
    """Build one model and its bundle, compare, print."""
    device = torch.device(options.device)
    size = options.size or (1024 if device.type == "cuda" else 256)
    if model == "flux":
        pipe, paint = flux_pipe(device, size, options.seed)
    else:
        pipe, paint = unet_pipe(SDXL if model == "sdxl" else TINY, device, size, options.seed)
    component = "transformer" if model == "flux" else "unet"
    root = getattr(pipe, component)
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=model, disable=None) as bar:
        files = [Path(folder, f"{name}.safetensors") for name in ("content", "style", "bundle")]
        for i, path in enumerate(files[:2]):
            write(path, component, root, options.rank, 2 * options.seed + i)
        lorabake.make(*files, method="dynamic", guide="off")
        bundle = lorabake.load(files[2])

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = compare(
            pipe, bundle, paint, steps=[options.steps], repeats=options.repeats, progress=progress
        )
        with torch.no_grad():
            share = agreement(pipe, bundle, paint, options.steps)
    times = {row.way: row.image[options.steps] for row in result.rows}
    print(f"\n### {model}: {len(bundle.manifest.layers)} layers of rank {options.rank}\n")
    print(markdown(result))
    for key in ("live", "live_256"):
        print(f"{key} / PEFT two adapters: {times[key] / times['peft_two']:.3f}")
    print(f"decisions of the first step that 256 tokens make as all do: {share:.2%}")


def main() -> None:
    """Read the options, run the models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="tiny | sdxl | flux")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--size", type=int, help="pixels (default: 256, on a GPU 1024)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model in options.models or ("tiny", "sdxl", "flux"):
        try:
            run(model, options)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
