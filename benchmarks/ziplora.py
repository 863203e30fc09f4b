"""What does an update of ZipLoRA cost? lorabake beside a plain dense implementation.

The dense way keeps both ΔW of every layer, computes the merged ΔW from them in each forward, and
runs four forwards an update: two teachers, two students. Both ways do the same updates on the same
noise in alternating rounds; what they learn is compared at the end.

    python benchmarks/ziplora.py [tiny] [sdxl] [--device cuda] [--repeats 3]
        [--rank 64] [--size 256] [--checkpointing] [--seed 0]

On a CPU, sdxl is a slice: SDXL with one instead of two layers per block, each with its 2 or 10
transformer layers. On a GPU it is the whole UNet. The tiny one has LoRAs of rank 8.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from models import ATTENTION, SDXL, TINY, draw, filled
from torch import Tensor, nn
from torch.nn import functional

from lorabake.lora.pairs import Pair
from lorabake.lora.types import LayerName, LowRank
from lorabake.pipelines.bench.machine import machine
from lorabake.pipelines.bench.memory import Peak
from lorabake.pipelines.conditions import Condition
from lorabake.pipelines.noising import Noised, noising
from lorabake.training.branches import Branches
from lorabake.training.coefficients import Coefficients
from lorabake.training.loop import Schedule, State, train
from lorabake.training.problem import AHEAD, USES, Problem

lib: Any = diffusers
LAMBDA, LR = 0.01, 0.005
SLICE = SDXL | {"layers_per_block": 1}


class Dense:
    """ZipLoRA as one writes it down: dense updates, one forward at a time."""

    def __init__(self, model: Any, pairs: Sequence[Pair]) -> None:  # noqa: ANN401 - any denoiser
        self.model, self.mode = model, "none"
        self.layers: list[tuple[Tensor, Tensor, nn.Parameter, nn.Parameter]] = []
        self.handles: list[Any] = []
        for pair in pairs:
            module: Any = model.get_submodule(pair.name.module)
            weight = module.weight
            deltas = [x.delta().to(weight) for x in (pair.content, pair.style) if x is not None]
            m = [nn.Parameter(torch.ones(weight.shape[1], device=weight.device)) for _ in deltas]
            layer = (deltas[0], deltas[1], m[0], m[1])
            self.layers.append(layer)
            self.handles.append(module.register_forward_hook(self._hook(layer)))
        self.optimiser = torch.optim.Adam([m for layer in self.layers for m in layer[2:]], lr=LR)

    def _hook(self, layer: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        content, style, m_c, m_s = layer

        def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            if self.mode == "none":
                return output
            weights = {"content": lambda: content, "style": lambda: style,
                       "merged": lambda: (m_c * content + m_s * style).to(content)}  # fmt: skip
            return output + functional.linear(args[0], weights[self.mode]())

        return add

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def update(self, noised: Noised, conditions: Sequence[Condition]) -> None:
        """Four forwards, one backward, one step of Adam."""
        weight = next(self.model.parameters())
        total: Any = 0
        for i, teacher in enumerate(("content", "style")):
            x = noised.latents[i : i + 1].to(weight)
            call = {"timestep": noised.timesteps[i : i + 1].to(weight.device), "return_dict": False}
            given = conditions[i].arguments
            with torch.no_grad():
                self.mode = teacher
                taught = self.model(x, **call, **given)[0]
            self.mode = "merged"
            total = total + (self.model(x, **call, **given)[0].float() - taught.float()).norm()
        for _, _, m_c, m_s in self.layers:
            total = total + LAMBDA * (m_c @ m_s).abs()
        self.optimiser.zero_grad()
        total.backward()  # in this mode, because checkpointing calls the layers once more
        self.mode = "none"
        self.optimiser.step()

    def flat(self) -> Tensor:
        """All coefficients, `[2, columns]`."""
        sides = ([layer[i].detach() for layer in self.layers] for i in (2, 3))
        return torch.stack([torch.cat(side) for side in sides])


class Ours:
    """lorabake's own loop, one update at a time."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - any denoiser
        pairs: Sequence[Pair],
        conditions: Sequence[Condition],
        seed: int,
    ) -> None:
        pipe = type("Pipe", (), {"unet": model})()
        self.branches = Branches(pipe, pairs, next(model.parameters()).dtype)
        self.problem = problem(model, self.branches, conditions)
        widths = [pair.content.shape[1] for pair in pairs if pair.content]
        self.coefficients = Coefficients(widths, next(model.parameters()).device)
        for pair, columns in zip(pairs, self.coefficients.layers, strict=True):
            self.branches.branches[str(pair.name)].columns = columns
        self.state, self.seed = State.new(sum(widths)), seed

    def update(self) -> None:
        """Two forwards, one backward, one step of Adam."""
        schedule = Schedule(len(self.state.history) + 1, LR, LAMBDA, "paper", self.seed)
        self.state = train(
            self.problem, self.coefficients, schedule, self.state, lambda state: None
        )

    def remove(self) -> None:
        """Take the hooks off."""
        self.branches.remove()

    def flat(self) -> Tensor:
        """All coefficients, `[2, columns]`."""
        return self.coefficients.flat.detach().clone()


def problem(model: Any, branches: Branches, conditions: Sequence[Condition]) -> Problem:  # noqa: ANN401
    """Random references and one prompt each."""
    dice = torch.Generator().manual_seed(1)
    latents = [torch.randn(2, *conditions[0].shape, generator=dice) for _ in "cs"]
    scheduler = lib.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")
    return Problem(
        model, branches, teachers=conditions, students=conditions,
        references=(latents[0], latents[1]), noising=noising(scheduler),
    )  # fmt: skip


def loras(model: nn.Module, rank: int, seed: int) -> list[Pair]:
    """Two random LoRAs of all attention layers."""
    dice = torch.Generator().manual_seed(seed)
    found: list[Pair] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ATTENTION):
            sides = [
                LowRank(
                    (torch.randn(rank, module.in_features, generator=dice) / rank).bfloat16(),
                    (torch.randn(module.out_features, rank, generator=dice) * 0.02).bfloat16(),
                )
                for _ in "cs"
            ]
            found.append(Pair(LayerName("unet", name), sides[0], sides[1]))
    return found


def run(name: str, options: argparse.Namespace) -> None:
    """Measure one model, print the table."""
    device = torch.device(options.device)
    whole = SDXL if device.type == "cuda" else SLICE
    size = options.size or (64 if name == "tiny" else 1024 if device.type == "cuda" else 256)
    build = lambda: lib.UNet2DConditionModel(**(whole if name == "sdxl" else TINY))  # noqa: E731
    model: Any = filled(build, device, options.seed)
    if name == "tiny":
        nn.Module.to(model, torch.float32)
    if options.checkpointing:
        model.enable_gradient_checkpointing()
    dtype = next(model.parameters()).dtype
    text = {
        "text_embeds": draw(device, 1, 1280).to(dtype),
        "time_ids": torch.tensor([[size, size, 0, 0, size, size]], device=device, dtype=dtype),
    }
    conditions = [
        Condition(
            {"encoder_hidden_states": draw(device, 1, 77, 2048).to(dtype) * scale,
             "added_cond_kwargs": text}, "sample", (4, size // 8, size // 8), 1.0,
        )
        for scale in (1.0, 0.5)
    ]  # fmt: skip
    pairs = loras(model, 8 if name == "tiny" else options.rank, options.seed)
    peak, extra = Peak(device), {"dense": 0, "lorabake": 0}

    def dense() -> tuple[Any, Callable[[], None]]:
        way = Dense(model, pairs)
        draws = problem(model, Branches(None, [], dtype), conditions)
        done = iter(range(10**6))
        return way, lambda: way.update(draws.draw(options.seed, next(done)), conditions)

    def ours() -> tuple[Any, Callable[[], None]]:
        way = Ours(model, pairs, conditions, options.seed)
        return way, way.update

    learnt: dict[str, Tensor] = {}
    for label, make in (("dense", dense), ("lorabake", ours)):
        floor = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        peak.start()
        way, update = make()
        for _ in range(2):
            update()
        extra[label] = (peak.read() or 0) - floor
        learnt[label] = way.flat().cpu()
        way.remove()
        del way, update
        gc.collect()

    seconds: dict[str, list[float]] = {"dense": [], "lorabake": []}
    for _ in range(options.repeats):
        # A block of lorabake's updates has one pass of the teachers for all of them.
        for label, make, count in (("dense", dense, 2), ("lorabake", ours, AHEAD * USES)):
            way, update = make()
            started = time.perf_counter()
            for _ in range(count):
                update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[label].append((time.perf_counter() - started) / count)
            way.remove()
            del way, update
            gc.collect()
    report(
        name,
        seconds,
        extra,
        learnt,
        len(pairs),
        machine(device, model, f"{size} px", compiled=False),
    )


def report(
    name: str,
    seconds: dict[str, list[float]],
    extra: dict[str, int],
    learnt: dict[str, Tensor],
    layers: int,
    where: dict[str, str | int],
) -> None:
    """Print medians, ratios and whether both learnt the same."""
    median = {label: statistics.median(values) for label, values in seconds.items()}
    print(f"\n## {name}: {layers} layers, {learnt['dense'].numel():,} coefficients\n")
    print("| | s per update | s per 100 | extra memory |\n| --- | ---: | ---: | ---: |")
    for label, value in median.items():
        print(f"| {label} | {value:.3f} | {100 * value:.0f} | {extra[label] / 1e6:.0f} MB |")
    time_ratio = median["lorabake"] / median["dense"]
    memory_ratio = extra["lorabake"] / extra["dense"]
    print(f"| ratio (goal: at most 0.5) | {time_ratio:.2f} | | {memory_ratio:.2f} |")
    apart = (learnt["dense"] - learnt["lorabake"]).abs().mean()
    print(
        f"\nmean movement {(learnt['dense'] - 1).abs().mean():.4f}, mean difference {apart:.1e}  "
    )
    print(", ".join(map(str, where.values())))


def main() -> None:
    """Measure the models that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", default=["tiny", "sdxl"], metavar="tiny|sdxl")
    parser.add_argument("--device", default="cpu")
    for name, default in (("repeats", 3), ("rank", 64), ("size", 0), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpointing", action="store_true")
    options = parser.parse_args()
    for name in options.models:
        run(name, options)


if __name__ == "__main__":
    main()
