"""The whole tool on the toy model: bake two LoRAs, replay the bundle, look and measure."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from .. import output as files
from ..bake import make
from ..bundle import load
from ..pipelines.generate import variants
from ..pipelines.load import load as load_pipeline
from ..pipelines.quiet import quiet
from ..pipelines.sheet import sheet
from ..plots import plot
from ..report import Report
from .scorer import score

HERE = Path(__file__).parent
SUBJECT, STYLE = "tikku", "glass"
ZIPPED = ("ziplora", "ziplora-layerwise")
STEPS, GUIDANCE, SHOWN, FIRST_SEED = 25, 3.0, 4, 100
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Mean:
    """Mean over seeds and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Row:
    """How far the pictures of one variant show the subject, the style, and both at once."""

    label: str
    subject: Mean
    style: Mean
    product: Mean


@dataclass(frozen=True)
class ShowcaseResult:
    """What `run` made and measured.

    Attributes:
        prompt: Of every picture.
        seeds: Pictures per row, the same seeds in each.
        rows: The scores, in the order of the comparison.
        report: Of baking the bundle, its checks among it.
        bundle: Path of K-LoRA's bundle.
        zipped: Paths of ZipLoRA's bundles, trained and layerwise.
        plan: Path of the picture of its plan.
        comparison: Path of the labelled pictures.
    """

    prompt: str
    seeds: int
    rows: tuple[Row, ...]
    report: Report
    bundle: str
    zipped: tuple[str, ...]
    plan: str
    comparison: str

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"report": self.report.to_json()}

    def __str__(self) -> str:
        head = f"{'':18}{'subject':>13}{'style':>13}{'both':>13}"
        lines = [
            f"{row.label:18}{row.subject!s:>13}{row.style!s:>13}{row.product!s:>13}"
            for row in self.rows
        ]
        note = f'mean ± standard error over {self.seeds} seeds of "{self.prompt}", 0 to 1'
        return "\n".join([str(self.report), "", head, *lines, note])


def run(
    output: Path,
    seeds: int = 8,
    *,
    subject: str = SUBJECT,
    style: str = STYLE,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> ShowcaseResult:
    """Bake, verify, draw the plan, render the variants with fixed seeds, and score them.

    Args:
        output: Folder for the bundles, `plan.png` and `comparison.png`.
        seeds: Pictures per variant.
        subject: Name of a shipped content LoRA.
        style: Name of a shipped style LoRA.
        force: Whether existing files may be replaced.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        OutputError: One of the files exists already or cannot be written.
    """
    files.folder(output)
    model = HERE / "model"
    names = ["bundle.safetensors", *(f"{method}.safetensors" for method in ZIPPED)]
    plan, comparison = output / "plan.png", output / "comparison.png"
    bundles = [output / name for name in names]
    *_, page = [files.check(path, force=force) for path in (*bundles, plan, comparison)]
    content, look = (HERE / "loras" / f"{name}.safetensors" for name in (subject, style))

    def bake(path: Path, **given: Any) -> Report:  # noqa: ANN401 - a method's parameters
        return make(content, look, path, base=model, force=force, progress=progress, **given)

    report = bake(bundles[0])
    own = own_prompts(subject, style)
    for method, path in zip(ZIPPED, bundles[1:], strict=True):
        bake(
            path, method=method, content_prompt=own[0], style_prompt=own[1],
            reference_guidance=GUIDANCE,
        )  # fmt: skip
    bundle = load(bundles[0])
    plot(bundle, plan, steps=STEPS, force=force)

    pipe = load_pipeline(model, device=torch.device("cpu"))
    prompt = picture_prompt(subject, style)
    wanted = variants(bundle) | {
        method: load(path) for method, path in zip(ZIPPED, bundles[1:], strict=True)
    }
    columns: dict[str, list[Image]] = {}
    rows: list[Row] = []
    for label, variant in wanted.items():
        progress("rendering", len(columns), len(wanted))
        with variant.attach(pipe) if variant else nullcontext():
            columns[label] = render(pipe, prompt, range(FIRST_SEED, FIRST_SEED + seeds))
        scores = score(columns[label], subject, style)
        measured = (_mean(x) for x in (scores.subject, scores.style, scores.product))
        rows.append(Row(label, *measured))
    progress("rendering", len(wanted), len(wanted))
    picture = io.BytesIO()
    sheet({label: images[:SHOWN] for label, images in columns.items()}).save(picture, "PNG")
    with files.replacing(page) as file:
        file.write(picture.getvalue())
    zipped = tuple(map(str, bundles[1:]))
    return ShowcaseResult(
        prompt, seeds, tuple(rows), report, str(bundles[0]), zipped, str(plan), str(comparison)
    )


def picture_prompt(subject: str, style: str) -> str:
    """The text of every picture."""
    return f"a green {subject} creature on a yellow background in {style} style"


def own_prompts(subject: str, style: str) -> tuple[str, str]:
    """What each LoRA is asked alone, as in its training."""
    return f"a {subject} creature", f"a creature in {style} style"


def render(pipe: Any, prompt: str, seeds: Sequence[int]) -> list[Image]:  # noqa: ANN401 - any diffusers pipeline
    """One picture per seed."""
    # All seeds in one batch: on two cores that is faster than one by one.
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with quiet():
        return pipe(
            [prompt] * len(noise),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=noise,
        ).images


def _mean(values: torch.Tensor) -> Mean:
    spread = float(values.std()) if len(values) > 1 else 0.0
    return Mean(float(values.mean()), spread / len(values) ** 0.5)
