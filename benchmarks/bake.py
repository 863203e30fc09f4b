"""How long does a bake take? K-LoRA's plan for an SDXL-sized pair, against the dense way.

Three ways through the same two files, in turns, medians:

* dense: per layer |B·A| in float32, `topk` of its K largest entries and their sum, sum of all
* lorabake: reading with all checks, then the whole plan
* floor: reading and one product per layer, nothing else

Then the peak memory of one whole `lorabake.make`, in a process of its own (Linux).

    python benchmarks/bake.py [--threads 2] [--rank 64] [--repeats 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import lorabake
from lorabake import lora, recipe
from lorabake.lora.pairs import pair
from lorabake.methods import get
from lorabake.methods.method import Context
from lorabake.runtime.plan import Threshold

Scores = list[float]
"""Sums of the K largest entries: the content's by layer, then the style's."""


def layers() -> Iterator[tuple[str, int, int]]:
    """(module, out, in) of SDXL's 560 attention linears."""
    stages = [("down_blocks.1", 2, 2, 640), ("down_blocks.2", 2, 10, 1280),
              ("mid_block", 1, 10, 1280), ("up_blocks.0", 3, 10, 1280),
              ("up_blocks.1", 3, 2, 640)]  # fmt: skip
    for stage, attentions, depth, width in stages:
        for block in (
            f"{stage}.attentions.{i}.transformer_blocks.{j}"
            for i in range(attentions)
            for j in range(depth)
        ):
            for attention, context in (("attn1", width), ("attn2", 2048)):
                yield f"{block}.{attention}.to_q", width, width
                yield f"{block}.{attention}.to_k", width, context
                yield f"{block}.{attention}.to_v", width, context
                yield f"{block}.{attention}.to_out.0", width, width


def modules() -> list[str]:
    """The layers' names in the order of `layers`."""
    return [module for module, _, _ in layers()]


def write(path: Path, rank: int, seed: int) -> None:
    """A LoRA as trained ones are: layers, rows and columns of uneven strength, float16."""
    dice = torch.Generator().manual_seed(seed)

    def uneven(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape, generator=dice)).exp()

    tensors: dict[str, Tensor] = {}
    for module, out, width in layers():
        strength = 10 ** (2 * float(torch.rand((), generator=dice)) - 3)
        down = torch.randn(rank, width, generator=dice) * uneven(1, width) / rank
        up = torch.randn(out, rank, generator=dice) * uneven(out, 1) * strength
        tensors[f"unet.{module}.lora_A.weight"] = down.half()
        tensors[f"unet.{module}.lora_B.weight"] = up.half()
    save_file(tensors, path)


def raw(*paths: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Factors (B, A) in float32, file by file, read with nothing but safetensors."""
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for module in modules():
                B, A = (file.get_tensor(f"unet.{module}.lora_{x}.weight") for x in "BA")
                yield B.float(), A.float()


def dense(content: Path, style: Path) -> Scores:
    """The plain way: the whole of each update, then `topk`."""
    scores: Scores = []
    for B, A in raw(content, style):
        entries = (B @ A).abs_()
        top = entries.flatten().topk(B.shape[1] ** 2, sorted=False).values.sum()
        scores.append(float(top))
        float(entries.sum())
    return scores


def floor(content: Path, style: Path) -> None:
    """What nobody can leave out: reading and multiplying."""
    for B, A in raw(content, style):
        torch.mm(B, A)


def plan(content: Path, style: Path) -> Scores:
    """What lorabake does before it writes; the scores of the content, then of the style."""
    pairs = pair(*lora.read_both(content, style))
    params = recipe.resolve("klora").params
    fused = get("klora").fuse(pairs, params, Context(torch.device("cpu")))
    rules = {p.name.module: rule for p, rule in zip(pairs, fused.plan.rules, strict=True)}
    found = [rule for rule in map(rules.get, modules()) if isinstance(rule, Threshold)]
    return [rule.scores[side] for side in (0, 1) for rule in found]


def timed(work: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(content: Path, style: Path, repeats: int) -> None:
    """Print the medians of all three ways and their ratios."""
    ways: dict[str, Callable[[], object]] = {
        "floor": lambda: floor(content, style),
        "lorabake": lambda: plan(content, style),
        "of which reading": lambda: lora.read_both(content, style),
        "dense": lambda: dense(content, style),
    }
    floor(content, style)  # once for the disk
    times = {name: list[float]() for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(timed(way))
    seconds = {name: median(found) for name, found in times.items()}
    for name, value in seconds.items():
        print(f"{name:18}{value:8.2f} s")
    print(f"dense / lorabake  {seconds['dense'] / seconds['lorabake']:8.1f}   (required: 5)")
    print(f"lorabake / floor  {seconds['lorabake'] / seconds['floor']:8.1f}   (aim: 2.5)")
    worst = max(
        abs(ours / theirs - 1)
        for ours, theirs in zip(plan(content, style), dense(content, style), strict=True)
    )
    print(f"scores differ by at most {worst:.1e} of their value (dense sums are float32)")


def memory(name: str) -> float:
    """A memory figure of this process, `VmRSS` now or `VmHWM` at its peak, in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(x.split()[1]) for x in status.splitlines() if x.startswith(name)) * 1024 / 1e6


def bake(content: Path, style: Path, output: Path) -> None:
    """One whole bake in this process; prints by how much it grew at its peak."""
    before = memory("VmRSS")
    lorabake.make(str(content), str(style), str(output))
    print(memory("VmHWM") - before)


def main() -> None:
    """Write the pair, compare, measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bake", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.bake:
        return bake(*options.bake)
    with tempfile.TemporaryDirectory() as folder:
        content, style = Path(folder, "content.safetensors"), Path(folder, "style.safetensors")
        # Elsewhere: a heap that has already grown would spare the dense way a third of its time,
        # which nobody who comes with two files gets.
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            list(pool.map(write, (content, style), (options.rank,) * 2, (0, 1)))
        size = sum(path.stat().st_size for path in (content, style)) / 1e6
        print(f"560 layers, rank {options.rank}, {size:.0f} MB in two files, "
              f"{options.threads} threads, torch {torch.__version__}")  # fmt: skip
        compare(content, style, options.repeats)
        command = [sys.executable, __file__, "--threads", str(options.threads), "--bake",
                   str(content), str(style), str(Path(folder, "bundle.safetensors"))]  # fmt: skip
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"peak memory of make {peak:6.0f} MB   (allowed: {1.5 * size + 200:.0f})")


if __name__ == "__main__":
    main()
