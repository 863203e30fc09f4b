"""How should ZipLoRA be trained? Learning rates, similarity terms and lambdas on the toy world.

Each row is baked for several pairs of the demo's LoRAs and scored like the demo does; the table is
in docs/ziplora.md.

    python benchmarks/ziplora_study.py [methods] [rates] [terms] [ridges] [--seeds 8] [--first 0]
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Mapping
from math import isnan, nan
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lorabake
from lorabake.demo.scorer import score
from lorabake.demo.showcase import GUIDANCE, HERE, own_prompts, picture_prompt, render
from lorabake.pipelines.load import load

PAIRS = (("tikku", "glass"), ("mobbo", "neon"), ("snorb", "blueprint"))
Setting = Mapping[str, Any]
STUDIES: dict[str, list[tuple[str, Setting]]] = {
    "methods": [
        ("direct merge", {"method": "direct"}),
        ("direct merge, 0.7 + 0.7", {"method": "direct", "w_c": 0.7, "w_s": 0.7}),
        ("K-LoRA", {"method": "klora"}),
        ("ZipLoRA", {"preset": "ziplora"}),
        ("ZipLoRA, layerwise", {"preset": "ziplora-layerwise"}),
    ],
    "rates": [
        (f"lr {lr:g}", {"method": "ziplora", "lr": lr}) for lr in (5e-5, 1e-3, 5e-3, 7e-3, 1e-2)
    ],
    "terms": [
        (f"{term}, lambda {value:g}", {"method": "ziplora", "similarity": term, "lambda_": value})
        for term, values in (("paper", (0, 0.001)), ("mean", (0.01, 1)), ("cosine", (0.01, 1, 10)))
        for value in values
    ],
    "ridges": [
        (f"layerwise, ridge {ridge:g}", {"method": "ziplora-layerwise", "ridge": ridge})
        for ridge in (0.001, 0.1, 1)
    ],
}


def row(label: str, setting: Setting, options: argparse.Namespace, pipe: Any) -> str:  # noqa: ANN401
    """Bake and score one setting; a line of the table."""
    seeds = range(options.first, options.first + options.seeds)
    found: dict[str, list[torch.Tensor]] = {key: [] for key in ("own_c", "own_s", "c", "s", "both")}
    notes: list[dict[str, float]] = []
    seconds = 0.0
    for subject, style in PAIRS:
        own = own_prompts(subject, style)
        params: dict[str, Any] = dict(setting)
        if "ziplora" in str(setting):
            prompts = {"content_prompt": own[0], "style_prompt": own[1]}
            params |= prompts | {"reference_guidance": GUIDANCE}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bundle.safetensors"
            content, look = (HERE / "loras" / f"{name}.safetensors" for name in (subject, style))
            report = lorabake.make(content, look, path, base=HERE / "model", **params)
            with lorabake.load(path).attach(pipe):
                joint = score(render(pipe, picture_prompt(subject, style), seeds), subject, style)
                alone = [score(render(pipe, prompt, seeds), subject, style) for prompt in own]
        found["own_c"].append(alone[0].subject)
        found["own_s"].append(alone[1].style)
        found["c"].append(joint.subject)
        found["s"].append(joint.style)
        found["both"].append(joint.product)
        notes.append(report.notes)
        seconds += report.seconds
    scores = {key: torch.cat(values) for key, values in found.items()}
    cells = [f"{values.mean():.2f}" for values in scores.values()]
    cells[-1] += f" ± {scores['both'].std() / len(scores['both']) ** 0.5:.2f}"
    names = ("movement", "product_after", "content_after", "style_after")
    means = [sum(note.get(name, nan) for note in notes) / len(notes) for name in names]
    figures = ["" if isnan(value) else f"{value:.3g}" for value in means]
    return f"| {label} | {' | '.join([*figures, *cells])} | {seconds / len(PAIRS):.1f} |"


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("studies", nargs="*", default=[*STUDIES])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "the coefficients barely moved")
    pipe = load(HERE / "model", device=torch.device("cpu"))
    print(
        "| | mean \\|m − 1\\| | mean \\|m_c·m_s\\| | content loss | style loss "
        "| subject, own prompt | style, own prompt | subject | style | both | s |"
    )
    print("| --- |" + " ---: |" * 10)
    for study in options.studies:
        for label, setting in tqdm(STUDIES[study], desc=study, disable=None):
            print(row(label, setting, options, pipe), flush=True)


if __name__ == "__main__":
    main()
