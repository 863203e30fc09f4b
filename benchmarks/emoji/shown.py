"""Where the world's files lie, what its LoRAs are asked, and how pictures are rendered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lorabake.pipelines.quiet import quiet

from .world import KNOWN, STYLE_WORDS, SUBJECT_WORD, SUBJECTS, caption

HERE = Path(__file__).parent
MODEL = HERE / "model"
STEPS, GUIDANCE = 25, 3.0


def lora(name: str, kind: str = "robust") -> Path:
    """The file of a subject or style LoRA; `robust` ones work in part, `fragile` ones do not."""
    return HERE / "loras" / f"{name}-{kind}.safetensors"


def true_picture(subject: str, style: str) -> Path:
    """The subject as the artists of the style have drawn it."""
    return HERE / "truths" / f"{subject}-{style}.png"


def picture_prompt(subject: str, style: str) -> str:
    """The text of every picture: both trigger words, no ground, for a style may bring its own."""
    return caption(f"{SUBJECT_WORD} {SUBJECTS[subject]}", style=STYLE_WORDS[style])


def own_prompts(subject: str, style: str) -> tuple[str, str]:
    """What each LoRA is asked alone, as in its training."""
    thing = f"{SUBJECT_WORD} {SUBJECTS[subject]}"
    return caption(thing), caption(KNOWN, style=STYLE_WORDS[style])


def render(pipe: Any, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:  # noqa: ANN401 - any diffusers pipeline
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
