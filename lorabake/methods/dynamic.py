"""Dynamic fusion (arXiv 2602.15539): layers choose by their features, references guide latents.

A reconstruction: no code of it is public, and what the paper leaves open is an option here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import PairError
from ..lora.pairs import Pair
from ..pipelines import encoders
from ..runtime.guidance import Guidance
from ..runtime.plan import Live, Plan
from ..runtime.selection import Selection
from ..training.scene import Wanted
from .dynamic_params import Params
from .embedded import references
from .method import BOTH, Context, Fused
from .trained import dtype_of, enough_memory, savings


class Dynamic:
    """Decisions are left to the runtime; what is made here are the references' embeddings."""

    name = "dynamic"
    summary = "per layer and call the LoRA that moves the features more; latents guided"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Let the denoiser's shared layers choose live, and embed the references.

        Raises:
            UserError: A prompt, the base model, an encoder or an image is missing or does not
                fit, or the LoRAs share no layer of the denoiser.
            MemoryLackError: The device's memory does not suffice.
        """
        live = [pair.contested and params.select for pair in pairs]
        if params.select and not any(live):
            raise PairError(
                "the two LoRAs share no layer of the denoiser, so there is nothing to choose",
                advice="Use the method direct, two LoRAs that both change the denoiser, or "
                "select=false",
            )
        guided, warnings = _guided(params, context.base)
        guidance = None
        if guided:
            with enough_memory(savings(params.precision, context.device)):
                guidance = _guidance(pairs, params, context)
        elif not params.select:
            warnings = (*warnings, "neither layers nor latents are decided on: a direct merge")
        return Fused(
            Plan(tuple(Live() if one else BOTH for one in live)),
            notes={"layers_live": float(sum(live)), "layers_summed": float(live.count(False)),
                   "references": 2.0 if guided else 0.0},
            warnings=warnings,
            selection=Selection(params.criterion, params.temperature, params.scope, params.tokens)
            if params.select
            else None,
            guidance=guidance,
        )  # fmt: skip


def _guided(params: Params, base: str | Path | None) -> tuple[bool, tuple[str, ...]]:
    """Whether latents are guided, and what to say if some of it was given but not enough."""
    if params.guide == "off":
        return False, ()
    if (lack := params.lack(base)) is None:
        return True, ()
    if params.guide == "on":
        raise lack
    given = any(prompt.strip() for prompt in params.prompts) or any(params.images)
    return False, (f"latents are not guided: {lack.what}",) if given else ()


def _guidance(pairs: Sequence[Pair], params: Params, context: Context) -> Guidance:
    wanted = Wanted(
        prompts=params.prompts,
        images=params.images,
        steps=params.reference_steps,
        guidance=params.reference_guidance or None,
        resolution=params.resolution or None,
        seed=params.seed,
        precision=dtype_of(params.precision),
    )
    return Guidance(
        references=references(pairs, wanted, (params.clip, params.dino), context),
        clip=encoders.recorded(params.clip),
        dino=encoders.recorded(params.dino),
        m=params.m,
        every=params.every,
        through=params.through,
        weights=(params.w_clip_content, params.w_clip_style, params.w_dino_style),
    )


METHOD = Dynamic()
