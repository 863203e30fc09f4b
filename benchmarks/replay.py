"""What does replay cost? lorabake beside everything else one can do with two LoRAs.

A pair of random LoRAs is baked and replayed in models of real shapes with random weights, from
given embeddings to latents, in alternating rounds; lorabake.pipelines.bench says what is measured.

    python benchmarks/replay.py [tiny] [sdxl] [flux] [--device cuda] [--steps 25 50] [--repeats 3]
        [--rank 64] [--size 256] [--compile] [--seed 0] [--threads 2]

On a CPU, flux is 2 of its 19 double and 4 of its 38 single blocks; on a GPU it is all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from models import SDXL, TINY, flux_pipe, unet_pipe, write
from tqdm import tqdm

import lorabake
from lorabake.errors import UserError
from lorabake.pipelines.bench import Result, compare, markdown


def goals(result: Result, device: torch.device) -> list[str]:
    """Each goal of replay with what was measured."""
    count, gpu = result.steps[0], device.type != "cpu"
    found: list[tuple[str, float, float, bool]] = []

    def ratio(what: str, first: str, second: str, limit: float, *, least: bool = False) -> None:
        above, below = result[first].image.get(count), result[second].image.get(count)
        if above and below:
            found.append((f"{what}, per image", above / below, limit, least))

    ratio("fused / floor", "fused", "floor", 1.01 if gpu else 1.02)
    ratio("hooks / PEFT one adapter", "hooks", "peft_one", 1.03)
    ratio("recomputed / fused", "recomputed", "fused", 10, least=True)
    for way in ("fused", "hooks"):
        attach, detach = result[way].attach, result[way].detach
        if attach is not None and detach is not None:
            found.append((f"{way}: attach + detach, s", attach + detach, 0.3 if gpu else 2, False))
    lines = ["| goal | required | found | |", "| --- | ---: | ---: | --- |"]
    for what, value, limit, least in found:
        holds = value >= limit if least else value <= limit
        sign = "≥" if least else "≤"
        lines.append(f"| {what} | {sign} {limit:g} | {value:.3g} | {'yes' if holds else 'NO'} |")
    return lines


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
    billions = sum(weight.numel() for weight in root.parameters()) / 1e9
    with tempfile.TemporaryDirectory() as folder, tqdm(desc=model, disable=None) as bar:
        files = [Path(folder, f"{name}.safetensors") for name in ("content", "style", "bundle")]
        for i, path in enumerate(files[:2]):
            write(path, component, root, options.rank, 2 * options.seed + i)
        lorabake.make(files[0], files[1], files[2])
        bundle = lorabake.load(files[2])

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = compare(
            pipe, bundle, paint, steps=options.steps, repeats=options.repeats,
            compiled=options.compile, progress=progress,
        )  # fmt: skip
        switches = bundle.selection(options.steps[0]).int().diff().count_nonzero()
        layers = len(bundle.manifest.layers)
    print(f"\n### {model}: {billions:.2f} B parameters, {layers} layers of rank {options.rank}, "
          f"{switches} switches per image of {options.steps[0]} steps\n")  # fmt: skip
    print(markdown(result), *goals(result, device), sep="\n", flush=True)


def main() -> None:
    """Read the options, run the models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="tiny | sdxl | flux")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--size", type=int, help="pixels (default: 256, on a GPU 1024)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    known = ("tiny", "sdxl", "flux")
    if odd := [model for model in options.models if model not in known]:
        parser.error(f"{odd[0]!r} is none of {', '.join(known)}")
    torch.set_num_threads(options.threads)
    for model in options.models or known:
        try:
            run(model, options)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
