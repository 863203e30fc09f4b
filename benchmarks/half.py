"""What does it cost that LoRAs act in the conditional half of guidance alone?

Models with random weights: blocks of FLUX with true guidance, whose pipeline calls the transformer
once for each half, and a UNet of SDXL's kind, which has both halves in one call. Images in
alternating rounds; and what one switch of all fused layers costs, done in three ways. On a CPU
times are those of the processor, so that others who use it do not count.

    python benchmarks/half.py [flux] [unet] [--device cuda] [--dtype float32] [--steps 3]
        [--repeats 3] [--rank 64] [--size 256] [--seed 0] [--threads 1]

On a CPU, flux is 1 of its 19 double and 2 of its 38 single blocks; on a GPU it is all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from models import NOTHING, TINY, draw, filled, lib, painter, unet_pipe, write
from torch import Tensor

import lorabake
from lorabake.runtime import Bundle
from lorabake.runtime.fused import Fused

UNET = TINY | {"block_out_channels": (128, 256, 512), "attention_head_dim": (4, 8, 16)}
WAYS: dict[str, dict[str, Any]] = {
    "both halves, fused": {"mode": "fused", "half": "both"},
    "both halves, hooks": {"mode": "hooks", "half": "both"},
    "conditional half, auto": {"mode": "auto", "half": "conditional"},
    "conditional half, hooks": {"mode": "hooks", "half": "conditional"},
}


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def flux(device: torch.device, dtype: torch.dtype, size: int, seed: int) -> tuple[Any, Any]:
    """FLUX's pipeline, and what paints with true guidance."""
    blocks = {"num_layers": 1, "num_single_layers": 2} if device.type == "cpu" else {}
    build = lambda: lib.FluxTransformer2DModel(**blocks, guidance_embeds=True)  # noqa: E731
    transformer = filled(build, device, seed).to(dtype)
    scheduler = lib.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = lib.FluxPipeline(**NOTHING, transformer=transformer, scheduler=scheduler)
    embeds = draw(device, 1, 64 if device.type == "cpu" else 512, 4096).to(dtype)
    pooled = draw(device, 1, 768).to(dtype)
    text: dict[str, Tensor] = {
        "prompt_embeds": embeds, "negative_prompt_embeds": embeds.flip(1),
        "pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled.flip(1),
    }  # fmt: skip
    return painter(pipe, size, {**text, "true_cfg_scale": torch.tensor(4.0)})


def switches(fused: list[Fused], repeats: int, device: torch.device) -> None:
    """One switch of all layers between W0 + ΔW and W0: exchanged, copied, computed anew."""
    pairs = [(patch.module.weight.data, patch.kept()[0]) for patch in fused]
    factors = [patch.tensors()[:2] for patch in fused]
    shown = [False]

    def exchange() -> None:
        shown[0] = not shown[0]
        for patch in fused:
            patch.show(base=shown[0])

    def copy() -> None:
        for one, other in pairs:
            one.copy_(other)

    def compute() -> None:
        for (one, other), (down, up) in zip(pairs, factors, strict=True):
            torch.addmm(other.flatten(1), up, down, out=one.flatten(1))

    found: dict[str, list[float]] = {}
    for _ in range(4 * repeats):
        for act in (exchange, copy, compute):
            found.setdefault(act.__name__, []).append(timed(act, device))
    size = sum(one.nbytes for one, _ in pairs) / 1e9
    line = ", ".join(f"{name} {1e3 * median(of):.2f} ms" for name, of in found.items())
    print(f"\none switch of {len(pairs)} layers, {size:.2f} GB: {line}", flush=True)


def measured(pipe: Any, bundle: Bundle, paint: Any, options: argparse.Namespace) -> None:  # noqa: ANN401 - any pipeline, a painter
    """Print what a step costs in each way."""
    device = torch.device(options.device)
    times = {way: list[float]() for way in WAYS}
    memory: dict[str, Any] = {}
    for _ in range(options.repeats):
        for way, how in WAYS.items():
            with bundle.attach(pipe, **how) as replay:
                paint(1)  # what is only done the first time
                times[way].append(timed(lambda: paint(options.steps), device) / options.steps)
                memory[way] = replay.report()["memory"]
    print("| | s/step | LoRAs | kept weights |", "| --- | ---: | ---: | ---: |", sep="\n")
    for way, of in times.items():
        held = [f"{memory[way][key] / 1e9:.2f} GB" for key in ("loras", "kept")]
        print(f"| {way} | {median(of):.3f} | {held[0]} | {held[1]} |", flush=True)


@torch.no_grad()
def run(model: str, options: argparse.Namespace) -> None:
    """Build one model and its bundle, measure, print."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    size = options.size or (1024 if device.type == "cuda" else 256)
    if model == "flux":
        pipe, paint = flux(device, dtype, size, options.seed)
    else:
        pipe, paint = unet_pipe(UNET, device, size, options.seed)
        pipe.unet.to(dtype)
    component = "transformer" if model == "flux" else "unet"
    root = getattr(pipe, component)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.safetensors") for name in ("content", "style", "bundle")]
        for i, path in enumerate(files[:2]):
            write(path, component, root, options.rank, 2 * options.seed + i)
        lorabake.make(files[0], files[1], files[2], method="direct", dtype=dtype)
        bundle = lorabake.load(files[2])
        count = sum(weight.numel() for weight in root.parameters()) / 1e9
        print(f"\n### {model}: {count:.2f} B parameters in {options.dtype}, "
              f"{len(bundle.manifest.layers)} layers of rank {options.rank}\n")  # fmt: skip
        measured(pipe, bundle, paint, options)
        if model == "flux":
            with bundle.attach(pipe, "fused", half="conditional") as replay:
                paint(1)
                part = vars(replay)["_conditional"].parts[component]
                switches(part.fused, options.repeats, device)


def main() -> None:
    """Read the options, run the models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", metavar="flux | unet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--size", type=int, help="pixels (default: 256, on a GPU 1024)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for model in options.models or ("flux", "unet"):
        run(model, options)


if __name__ == "__main__":
    main()
