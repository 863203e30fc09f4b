"""Setting the scene: base model, both LoRAs in it, their prompts and their reference latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import pipelines
from ..lora.pairs import Pair
from ..lora.types import LowRank
from ..pipelines import pictures
from ..pipelines.conditions import Condition, denoiser, record, size
from ..pipelines.noising import noising
from ..pipelines.references import encode, sample
from .branches import BOTH, CONTENT, STYLE, Branches
from .coefficients import Coefficients
from .objective import Norm
from .problem import Problem, References

Tell = Callable[[str, int, int], None]
_ROLES = (CONTENT, STYLE)


@dataclass(frozen=True)
class Wanted:
    """What the two LoRAs are asked to show; pairs are (content, style).

    Attributes:
        prompts: Their own prompts, with their trigger words.
        images: Folders of their images; None to let a LoRA paint its references itself.
        references: Images that each LoRA paints.
        steps: Denoising steps of those.
        guidance: Classifier-free guidance of those; None is the pipeline's own.
        resolution: Height and width in pixels; None is the model's own.
        seed: Of those images.
        batch: Samples of each side per forward.
        norm: How predictions are compared.
        precision: Dtype of the base model; None is float32 on a CPU and bfloat16 elsewhere.
        gradient_checkpointing: Whether activations are computed twice instead of kept.
    """

    prompts: tuple[str, str]
    images: tuple[str | None, str | None] = (None, None)
    references: int = 4
    steps: int = 25
    guidance: float | None = None
    resolution: int | None = None
    seed: int = 0
    batch: int = 1
    norm: Norm = "paper"
    precision: torch.dtype | None = None
    gradient_checkpointing: bool = False


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that training needs.

    Attributes:
        problem: Teachers and student.
        trained: Position of each layer that gets coefficients among the pairs.
        layers: Content and style factors of these.
        names: Their names, as the problem's branches have them.
        device: Where the model is.
    """

    problem: Problem
    trained: tuple[int, ...]
    layers: tuple[tuple[LowRank, LowRank], ...]
    names: tuple[str, ...]
    device: torch.device

    @property
    def widths(self) -> list[int]:
        """Input columns of each trained layer."""
        return [content.shape[1] for content, _ in self.layers]

    def coefficients(self) -> Coefficients:
        """Coefficients of the trained layers, which the problem's student uses from now on."""
        found = Coefficients(self.widths, self.device)
        for name, columns in zip(self.names, found.layers, strict=True):
            self.problem.branches.branches[name].columns = columns
        return found


def prepare(
    pairs: Sequence[Pair],
    base: str | Path,
    wanted: Wanted,
    device: torch.device,
    tell: Tell,
    cached: References | None = None,
) -> Scene:
    """Load the base model, put the LoRAs in it, and make the reference latents.

    Args:
        pairs: Layers of the two LoRAs.
        base: Base model, a folder or a hub id.
        wanted: What the LoRAs are asked to show.
        device: Where to compute.
        tell: Called as `tell(stage, done, total)`.
        cached: Reference latents of an earlier run, instead of making them again.

    Raises:
        BaseModelError: The base model cannot be loaded or called, or trained with.
        ImageError: An image cannot be used.
        PairError: The base model lacks some of the layers.
    """
    for folder in wanted.images if cached is None else ():
        if folder is not None:  # what is wrong is told before a large model is loaded
            pictures.read(folder, wanted.resolution or 1)
    pipe, branches = loaded(pairs, base, wanted.precision, device, tell)
    model = denoiser(pipe)
    pixels, noise = size(pipe, wanted.resolution), noising(pipe.scheduler)
    teachers, students = _conditions(pipe, branches, pairs, wanted.prompts, pixels)
    references = cached or _references(pipe, branches, wanted, pixels, tell)
    # Their work is done: without their layers the text encoders are free to go.
    branches.remove("text_encoder")
    if wanted.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    trained = tuple(i for i, pair in enumerate(pairs) if pair.contested)
    layers = [(pairs[i].content, pairs[i].style) for i in trained]
    return Scene(
        Problem(
            model, branches, teachers=teachers, students=students, references=references,
            noising=noise, batch=wanted.batch, norm=wanted.norm,
        ),
        trained,
        tuple((c, s) for c, s in layers if c is not None and s is not None),
        tuple(str(pairs[i].name) for i in trained),
        device,
    )  # fmt: skip


def loaded(
    pairs: Sequence[Pair],
    base: str | Path,
    precision: torch.dtype | None,
    device: torch.device,
    tell: Tell,
) -> tuple[Any, Branches]:
    """The base model, frozen, and both LoRAs beside its layers; nothing of them acts yet.

    Raises:
        BaseModelError: The base model cannot be loaded.
        PairError: It lacks some of the layers.
    """
    tell("loading the base model", 0, 1)
    pipe = pipelines.load(base, device=device, dtype=precision)
    branches = Branches(pipe, pairs, next(denoiser(pipe).parameters()).dtype)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    tell("loading the base model", 1, 1)
    return pipe, branches


def _conditions(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    branches: Branches,
    pairs: Sequence[Pair],
    prompts: tuple[str, str],
    pixels: int,
) -> tuple[list[Condition], list[Condition]]:
    """The two prompts as the teachers are told them, and as the student is."""
    teachers: list[Condition] = []
    students: list[Condition] = []
    encoded = any(pair.name.component.startswith("text_encoder") for pair in pairs)
    for prompt, sides in zip(prompts, _ROLES, strict=True):
        with branches.acting(sides):
            teachers.append(record(pipe, prompt, pixels))
        with branches.acting(BOTH):  # a bundle applies both LoRAs' text encoders
            students.append(record(pipe, prompt, pixels) if encoded else teachers[-1])
    return teachers, students


def _references(
    pipe: Any,  # noqa: ANN401 - any diffusers pipeline
    branches: Branches,
    wanted: Wanted,
    pixels: int,
    tell: Tell,
) -> References:
    total = wanted.references * sum(folder is None for folder in wanted.images)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        tell("painting references", done, total)

    found: list[Tensor] = []
    for folder, prompt, sides in zip(wanted.images, wanted.prompts, _ROLES, strict=True):
        if folder is not None:
            images = pictures.read(folder, pixels)
            found.append(encode(pipe, images, wanted.seed))
            continue
        with branches.acting(sides):
            painted = sample(
                pipe, prompt, count=wanted.references, pixels=pixels, steps=wanted.steps,
                guidance=wanted.guidance, seed=wanted.seed, progress=step,
            )  # fmt: skip
        found.append(painted)
    return found[0], found[1]
