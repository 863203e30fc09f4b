"""The whole tool on the toy model: bake two LoRAs, replay the bundle, look and measure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from .. import output as files
from ..bake import make
from ..bundle import load
from ..pipelines.encoders import encoders
from ..pipelines.generate import variants
from ..pipelines.load import load as load_pipeline
from ..pipelines.quiet import quiet
from ..pipelines.sheet import sheet
from ..plots import plot
from ..report import Report
from ..runtime import Bundle
from .scorer import score

HERE = Path(__file__).parent
SUBJECT, STYLE = "tikku", "glass"
MODEL = HERE / "model"
CLIP, DINO = HERE / "encoders" / "clip", HERE / "encoders" / "dino"
"""The toy world's own encoders, which stand for the real ones."""
OTHERS: dict[str, dict[str, Any]] = {
    "ziplora": {},
    "ziplora-layerwise": {},
    "dynamic": {"clip": str(CLIP), "dino": str(DINO)},
}
"""Methods that use the base model, with their parameters beside prompts and guidance."""
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
        others: Paths of the bundles of the other methods, in the order of their rows.
        plan: Path of the picture of its plan.
        comparison: Path of the labelled pictures.
    """

    prompt: str
    seeds: int
    rows: tuple[Row, ...]
    report: Report
    bundle: str
    others: tuple[str, ...]
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
        guides = "dynamic is guided by two small encoders of the toy world, not by CLIP and DINO"
        return "\n".join([str(self.report), "", head, *lines, note, guides])


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
    first, *others = (output / f"{name}.safetensors" for name in ("bundle", *OTHERS))
    plan, comparison = output / "plan.png", output / "comparison.png"
    *_, page = [files.check(path, force=force) for path in (first, *others, plan, comparison)]
    content, look = (HERE / "loras" / f"{name}.safetensors" for name in (subject, style))

    def bake(path: Path, **given: Any) -> Report:  # noqa: ANN401 - a method's parameters
        return make(content, look, path, base=MODEL, force=force, progress=progress, **given)

    report = bake(first)
    prompts = dict(
        zip(("content_prompt", "style_prompt"), own_prompts(subject, style), strict=True)
    )
    for method, path in zip(OTHERS, others, strict=True):
        bake(path, method=method, reference_guidance=GUIDANCE, **prompts, **OTHERS[method])
    plot(load(first), plan, steps=STEPS, force=force)

    wanted = variants(load(first)) | dict(zip(OTHERS, map(load, others), strict=True))
    prompt = picture_prompt(subject, style)
    columns = _painted(wanted, prompt, seeds, progress)
    picture = io.BytesIO()
    sheet({label: images[:SHOWN] for label, images in columns.items()}).save(picture, "PNG")
    with files.replacing(page) as file:
        file.write(picture.getvalue())
    rows = tuple(_scored(label, images, subject, style) for label, images in columns.items())
    paths = tuple(map(str, others))
    return ShowcaseResult(
        prompt, seeds, rows, report, str(first), paths, str(plan), str(comparison)
    )


def _painted(
    wanted: Mapping[str, Bundle | None], prompt: str, seeds: int, progress: Progress
) -> dict[str, list[Image]]:
    """The same seeds by every variant."""
    pipe = load_pipeline(MODEL, device=torch.device("cpu"))
    columns: dict[str, list[Image]] = {}
    for label, variant in wanted.items():
        progress("rendering", len(columns), len(wanted))
        with _attached(variant, pipe):
            columns[label] = render(pipe, prompt, range(FIRST_SEED, FIRST_SEED + seeds))
    progress("rendering", len(wanted), len(wanted))
    return columns


def _attached(variant: Bundle | None, pipe: Any) -> AbstractContextManager[object]:  # noqa: ANN401 - any diffusers pipeline
    if variant is None:
        return nullcontext()
    guided = variant.manifest.guidance is not None
    return variant.attach(pipe, encoders=encoders(variant, CLIP, DINO) if guided else None)


def _scored(label: str, images: Sequence[Image], subject: str, style: str) -> Row:
    scores = score(images, subject, style)
    return Row(label, *(_mean(x) for x in (scores.subject, scores.style, scores.product)))


def picture_prompt(subject: str, style: str) -> str:
    """The text of every picture."""
    return f"a green {subject} creature on a yellow background in {style} style"


def own_prompts(subject: str, style: str) -> tuple[str, str]:
    """What each LoRA is asked alone, as in its training."""
    return f"a {subject} creature", f"a creature in {style} style"


def reference_prompts(subject: str, style: str) -> dict[str, Any]:
    """The same as parameters of a method."""
    content, look = own_prompts(subject, style)
    return {"content_prompt": content, "style_prompt": look}


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
