"""Do the papers' premises hold for the emoji world's LoRAs, fragile and robust ones?

They are properties of LoRAs and base model, not of a method: (i) content alone on a random half of
the layers of each step keeps the subject, on a quarter it does not (K-LoRA, figure 3); (ii) content
first and style after it keeps the subject, the other order loses it (figure 2); (iii) nine in ten
entries of ΔW, the smallest, can go (ZipLoRA, figure 3a); (iv) either LoRA works at strength 0.7.

    python -m benchmarks.emoji.premises [--seeds 8] [--threads 2]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

import lorabake
from lorabake import lora as loras
from lorabake.pipelines.generate import gated
from lorabake.pipelines.load import load
from lorabake.runtime.plan import CONTENT, STYLE, Table

from .scorer import score
from .shown import MODEL, lora, own_prompts, picture_prompt, render
from .things import SHIPPED
from .world import NEW_STYLES

BINS, FIRST = 50, 500
Row = tuple[int, Callable[[], AbstractContextManager[Any]]]


def tabled(bundle: lorabake.Bundle, share: float, seed: int = 0) -> lorabake.Bundle:
    """Content with this probability in each layer and part of the run, else style."""
    layers = []
    for layer in bundle.manifest.layers:
        dice = Random(f"{seed} {layer}")
        table = tuple(CONTENT if dice.random() < share else STYLE for _ in range(BINS))
        layers.append(replace(layer, rule=Table(table)))
    return replace(bundle, manifest=replace(bundle.manifest, layers=tuple(layers)))


def ordered(bundle: lorabake.Bundle, first: int, share: float) -> lorabake.Bundle:
    """One of the two everywhere up to this share of the run, then the other one."""
    table = tuple(first if i < share * BINS else 1 - first for i in range(BINS))
    layers = tuple(replace(layer, rule=Table(table)) for layer in bundle.manifest.layers)
    return replace(bundle, manifest=replace(bundle.manifest, layers=layers))


@contextmanager
def pruned(pipe: Any, path: Path, kept: float) -> Generator[None]:  # noqa: ANN401 - any pipeline
    """W0 + ΔW with only the largest entries of each ΔW."""
    before: dict[torch.nn.Parameter, torch.Tensor] = {}
    try:
        for key, factors in loras.read(path).layers.items():
            weight = pipe.unet.get_submodule(key.module).weight
            delta = factors.scale * (factors.up.float() @ factors.down.float())
            least = delta.abs().flatten().kthvalue(int((1 - kept) * delta.numel()) or 1).values
            before[weight] = weight.data.clone()
            weight.data += torch.where(delta.abs() >= least, delta, 0).view_as(weight)
        yield
    finally:
        for weight, kept_weight in before.items():
            weight.data.copy_(kept_weight)


def rows(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    bundle: lorabake.Bundle,
    files: Sequence[Path],
) -> dict[str, Row]:
    """What is at work in each row: its prompt (0 content's own, 1 style's own, 2 both words)."""
    content = gated(bundle, (1.0, 0.0))
    found: dict[str, Row] = {"content: not at all": (0, nullcontext)}
    for x in (1.0, 1.4, 0.7, 0.5):
        found[f"content: strength {x:g}"] = (0, partial(content.attach, pipe, content_strength=x))
    for share in (0.75, 0.5, 0.25):
        drawn = tabled(bundle, share)
        found[f"content: {share:.0%} of the layers"] = (
            0, partial(drawn.attach, pipe, style_strength=0.0)
        )  # fmt: skip
    for early, name in ((CONTENT, "first"), (STYLE, "second")):
        half = ordered(bundle, early, 0.5)
        found[f"content: {name} half of the run"] = (
            0, partial(half.attach, pipe, style_strength=0.0)
        )  # fmt: skip
    found["content: largest 10 % of the entries"] = (0, partial(pruned, pipe, files[0], 0.1))
    style = gated(bundle, (0.0, 1.0))
    for x in (1.0, 0.7, 0.5):
        found[f"style: strength {x:g}"] = (1, partial(style.attach, pipe, style_strength=x))
    halved = tabled(bundle, 0.5, 1)
    found["style: 50% of the layers"] = (1, partial(halved.attach, pipe, content_strength=0.0))
    found["style: largest 10 % of the entries"] = (1, partial(pruned, pipe, files[1], 0.1))
    for early, name in ((CONTENT, "content, then style"), (STYLE, "style, then content")):
        for share in (0.3, 0.5, 0.7):
            plan = ordered(bundle, early, share)
            found[f"both: {name} from {share:.0%}"] = (2, partial(plan.attach, pipe))
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipe: Any = load(MODEL, device=torch.device("cpu"))
    pairs = [*zip(SHIPPED, NEW_STYLES, strict=True)]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, pair in tqdm([*product(("robust", "fragile"), pairs)]):
            files = [lora(name, kind) for name in pair]
            path = Path(folder, f"{kind}-{'-'.join(pair)}.safetensors")
            lorabake.make(files[0], files[1], path, method="direct")
            prompts = [*own_prompts(*pair), picture_prompt(*pair)]
            for label, (prompt, attached) in rows(pipe, lorabake.load(path), files).items():
                with attached():
                    images = render(pipe, prompts[prompt], range(FIRST, FIRST + options.seeds))
                told = score(images, *pair)
                value = float(told.subject.mean()), float(told.style.mean())
                found.setdefault(label, {}).setdefault(kind, []).append(value)
    print("| | robust: subject | style | fragile: subject | style |")
    print("| --- |" + " ---: |" * 4)
    for label, kinds in found.items():
        means = [sum(v[i] for v in kinds[k]) / len(pairs) for k in kinds for i in (0, 1)]
        print(f"| {label} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


if __name__ == "__main__":
    main()
