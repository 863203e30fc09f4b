"""Parameters of dynamic fusion (arXiv 2602.15539), the open choices of the paper among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from ..errors import RecipeError
from ..pipelines import encoders
from ..runtime.guidance import MAX_EVERY, MAX_FORCE, Through
from ..runtime.overrides import WEIGHTS
from ..runtime.selection import (
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MIN_TEMPERATURE,
    Criterion,
    Scope,
)
from .trained import check_references
from .values import flag, one_of, store, text, whole, within

_PATH = {"path": True}
_ENCODER = {"path": True, "recorded": encoders.recorded}


@dataclass(frozen=True)
class Params:
    """Feature-level selection (FLS), and latent-level refinement (LLR) by two references.

    Attributes:
        select: Whether layers choose (FLS); else both LoRAs act all the time.
        criterion: What they compare: `kl`, `js`, `cosine` or `dot` (Table 4).
        temperature: Of the softmax over channels.
        scope: Who decides together: each `sample`, or the whole `batch`.
        tokens: Tokens that are looked at; 0 is all.
        guide: Whether latents are guided (LLR): `on`, `off`, or `auto`: if there is a reference
            of each LoRA, or all that is needed to paint it.
        m: Step size of that.
        every: At every how many steps.
        through: Whether the gradient goes through the `denoiser`, or through the `latents` alone.
        w_clip_content: Weight of the CLIP similarity to the content's reference.
        w_clip_style: Weight of the CLIP similarity to the style's.
        w_dino_style: Weight of the DINO similarity to the style's.
        clip: CLIP encoder, a folder or a hub id.
        dino: DINO encoder, likewise.
        content_prompt: What the content LoRA was trained with; its reference is painted of it.
        style_prompt: Likewise of the style LoRA.
        content_images: A folder of images, or one image, to be the reference instead.
        style_images: Likewise of the style.
        reference_steps: Denoising steps of a reference.
        reference_guidance: Its classifier-free guidance; 0 is the pipeline's own.
        resolution: Its height and width in pixels; 0 is the model's own.
        seed: Its seed.
        precision: Dtype of the base model; `auto` is float32 on a CPU and bfloat16 elsewhere.
    """

    select: bool = True
    criterion: Criterion = "kl"
    temperature: float = 1.0
    scope: Scope = "sample"
    tokens: int = 0
    guide: str = "auto"
    m: float = 10.0
    every: int = 1
    through: Through = "denoiser"
    w_clip_content: float = 1.0
    w_clip_style: float = 1.0
    w_dino_style: float = 1.0
    clip: str = field(default=encoders.CLIP, metadata=_ENCODER)
    dino: str = field(default=encoders.DINO, metadata=_ENCODER)
    content_prompt: str = ""
    style_prompt: str = ""
    content_images: str = field(default="", metadata=_PATH)
    style_images: str = field(default="", metadata=_PATH)
    reference_steps: int = 25
    reference_guidance: float = 0.0
    resolution: int = 0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        check_references(self)
        store(
            self,
            select=flag("select", self.select),
            criterion=one_of("criterion", self.criterion, get_args(Criterion)),
            temperature=within("temperature", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE),
            scope=one_of("scope", self.scope, get_args(Scope)),
            tokens=whole("tokens", self.tokens, 0, MAX_TOKENS),
            guide=one_of("guide", self.guide, ("auto", "on", "off")),
            m=within("m", self.m, 0, MAX_FORCE),
            every=whole("every", self.every, 1, MAX_EVERY),
            through=one_of("through", self.through, get_args(Through)),
            clip=text("clip", self.clip),
            dino=text("dino", self.dino),
            **{name: within(name, getattr(self, name), 0, MAX_FORCE) for name in WEIGHTS},
        )

    @property
    def prompts(self) -> tuple[str, str]:
        """Of content and style."""
        return self.content_prompt, self.style_prompt

    @property
    def images(self) -> tuple[str | None, str | None]:
        """Of content and style; None where the LoRA paints."""
        return self.content_images or None, self.style_images or None

    def lack(self, base: str | Path | None) -> RecipeError | None:
        """What there is too little of to have two references; None if there is enough."""
        for role, prompt, images in zip(
            ("content", "style"), self.prompts, self.images, strict=True
        ):
            if images is None and not prompt.strip():
                return RecipeError(
                    f"the {role} prompt is missing, and the {role} reference is painted of it",
                    where=f"{role}_prompt",
                    advice=f"Give the text that the {role} LoRA was trained with "
                    f'(--{role}-prompt "..."), or images (--{role}-images), or set guide=off',
                )
        if base is None and None in self.images:
            return RecipeError(
                "the base model is missing, and references are painted with it",
                where="base",
                advice="Name its folder in diffusers format, or its hub id (--base DIR|ID), or "
                "give images of both LoRAs, or set guide=off",
            )
        return None
