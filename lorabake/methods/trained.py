"""What methods that train on the base model have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MemoryLackError, PairError, RecipeError, out_of_memory
from ..lora.pairs import Pair
from ..runtime.plan import Plan
from ..training import measures
from ..training.scene import Scene, Wanted
from .method import BOTH, Columns, Context, Fused
from .values import not_negative, one_of, store, text, whole

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainedParams:
    """What the LoRAs are asked to show, and how the base model runs.

    Attributes:
        content_prompt: What the content LoRA was trained with, its trigger word in it.
        style_prompt: Likewise of the style LoRA.
        content_images: Folder of the images that the content LoRA was trained with; empty to let
            it paint its references itself.
        style_images: Likewise of the style LoRA.
        references: Images that a LoRA paints, if it does.
        reference_steps: Denoising steps of those.
        reference_guidance: Classifier-free guidance of those; 0 is the pipeline's own.
        resolution: Height and width in pixels; 0 is the model's own.
        seed: Of references, timesteps and noise.
        batch: Samples of content, and of style, per update.
        precision: Dtype of the base model; `auto` is float32 on a CPU and bfloat16 elsewhere.
            Coefficients are float32 always.
    """

    content_prompt: str = ""
    style_prompt: str = ""
    content_images: str = field(default="", metadata={"path": True})
    style_images: str = field(default="", metadata={"path": True})
    references: int = 4
    reference_steps: int = 25
    reference_guidance: float = 0.0
    resolution: int = 0
    seed: int = 0
    batch: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        check_references(self)
        store(
            self,
            references=whole("references", self.references, 1, 1000),
            batch=whole("batch", self.batch, 1, 256),
        )

    def savings(self, device: torch.device) -> list[str]:
        """Settings with which less memory is needed than with these."""
        return savings(self.precision, device) + ["batch=1"] * (self.batch > 1)

    def wanted(self, method: str) -> Wanted:
        """The same for training.

        Raises:
            RecipeError: A prompt is missing.
        """
        for role, prompt in (("content", self.content_prompt), ("style", self.style_prompt)):
            if not prompt.strip():
                raise RecipeError(
                    f"the {role} prompt is missing, and {method} trains with it",
                    where=f"{role}_prompt",
                    advice=f"Give the text that the {role} LoRA was trained with, trigger word "
                    f'included: --{role}-prompt "..."',
                )
        return Wanted(
            prompts=(self.content_prompt, self.style_prompt),
            images=(self.content_images or None, self.style_images or None),
            references=self.references,
            steps=self.reference_steps,
            guidance=self.reference_guidance or None,
            resolution=self.resolution or None,
            seed=self.seed,
            batch=self.batch,
            precision=dtype_of(self.precision),
        )


def check_references(params: Any) -> None:  # noqa: ANN401 - any method's parameters
    """Check and store the parameters that say what a LoRA shows, and how.

    Raises:
        RecipeError: One is of the wrong type or out of range.
    """
    store(
        params,
        content_prompt=text("content_prompt", params.content_prompt),
        style_prompt=text("style_prompt", params.style_prompt),
        content_images=text("content_images", params.content_images),
        style_images=text("style_images", params.style_images),
        reference_steps=whole("reference_steps", params.reference_steps, 1, 1000),
        reference_guidance=not_negative("reference_guidance", params.reference_guidance),
        resolution=whole("resolution", params.resolution, 0, 8192),
        seed=whole("seed", params.seed, 0, 2**31 - 1),
        precision=one_of("precision", params.precision, _PRECISIONS),
    )


def dtype_of(precision: str) -> torch.dtype | None:
    """The dtype of this name; None is left to the device."""
    return None if precision == "auto" else getattr(torch, precision)


def savings(precision: str, device: torch.device) -> list[str]:
    """The setting of a precision that needs less memory than this one."""
    full = precision == "float32" or (precision == "auto" and device.type == "cpu")
    return ["precision=bfloat16"] if full else []


def base_for(method: str, pairs: Sequence[Pair], context: Context) -> str | Path:
    """The base model to train with.

    Raises:
        RecipeError: None was given.
        PairError: There is nothing to train.
    """
    if not any(pair.contested for pair in pairs):
        raise PairError(
            "the two LoRAs share no layer of the denoiser, so there is nothing to train",
            advice="Use the method direct, or two LoRAs that both change the denoiser",
        )
    if context.base is None:
        raise RecipeError(
            f"the base model is missing, and {method} trains with it",
            where="base",
            advice="Name its folder in diffusers format, or its hub id: --base DIR|ID",
        )
    return context.base


def fused(
    pairs: Sequence[Pair], scene: Scene, flat: Tensor, notes: Mapping[str, float], remedy: str
) -> Fused:
    """The result of a training.

    Args:
        pairs: Layers of the two LoRAs.
        scene: Where was trained.
        flat: The coefficients, `[2, columns]`, of the scene's layers in turn.
        notes: Figures for the report, to which those of the coefficients are added.
        remedy: What to do where the coefficients barely moved.
    """
    m_c, m_s = (side.split(scene.widths) for side in flat)
    trained = list(zip(m_c, m_s, strict=True))
    columns: list[Columns | None] = [None] * len(pairs)
    for i, both in zip(scene.trained, trained, strict=True):
        columns[i] = both
    figures = measures.summary(scene.layers, trained)
    warnings: list[str] = []
    if figures["movement"] < measures.BARELY:
        warnings.append(
            f"the coefficients barely moved (by {figures['movement']:.2g} on average from 1), so "
            f"this is close to a direct merge: {remedy}"
        )
    return Fused(
        Plan((BOTH,) * len(pairs)),
        notes={**notes, **figures},
        columns=tuple(columns),
        warnings=tuple(warnings),
    )


@contextlib.contextmanager
def enough_memory(savings: Sequence[str]) -> Generator[None]:
    """Say what to lower where memory runs out inside.

    Args:
        savings: Settings that need less.

    Raises:
        MemoryLackError: It did.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise MemoryLackError(
            "this does not fit into memory. Use less of it with --set: "
            f"{', '.join([*savings, 'or a smaller resolution'])}."
        ) from error
