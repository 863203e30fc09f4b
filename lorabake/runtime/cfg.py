"""How pipelines of diffusers compute classifier-free guidance: known by name, from their code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Way:
    """How a pipeline computes the two halves of guidance.

    Attributes:
        parts: What the samples of one call are, in their order, one letter for each part: `c` of
            the prompt, `u` of the negative prompt, `p` of the prompt with perturbed attention, `i`
            of an image alone. Empty where each half has a call of its own.
        on: What says whether there is guidance: a variable of the pipeline's `__call__`, or an
            attribute of the pipeline. Empty where there never is.
        lists: Whether samples come as lists, and layers see the tokens of all of them together.
    """

    parts: str
    on: str
    lists: bool = False

    @property
    def separate(self) -> bool:
        """Whether each half gets a call of its own; lists are cut into two."""
        return self.lists or not self.parts


_ATTRIBUTE = "do_classifier_free_guidance"
_TWO_CALLS = Way("", _ATTRIBUTE)
_TRUE_CFG = Way("", "do_true_cfg")
_ONE_CALL = Way("uc", _ATTRIBUTE)
_LISTS = Way("cu", "apply_cfg", lists=True)
_PERTURBED = Way("ucp", _ATTRIBUTE)
_OF_IMAGES = Way("ciu", _ATTRIBUTE)
_NEVER = Way("", "")

_NAMES: Mapping[Way, str] = {
    _ONE_CALL: """
        AnimateDiff AnimateDiffControlNet AnimateDiffSDXL AnimateDiffSparseControlNet
        AnimateDiffVideoToVideo AnimateDiffVideoToVideoControlNet AuraFlow CogVideoX
        CogVideoXFunControl CogVideoXImageToVideo CogVideoXVideoToVideo Kolors KolorsImg2Img LTX
        LTXCondition LTXImageToVideo PixArtAlpha PixArtSigma Sana SanaControlNet StableDiffusion
        StableDiffusion3 StableDiffusion3ControlNet StableDiffusion3ControlNetInpainting
        StableDiffusion3Img2Img StableDiffusion3Inpaint StableDiffusionAdapter
        StableDiffusionControlNet StableDiffusionControlNetImg2Img
        StableDiffusionControlNetInpaint StableDiffusionDepth2Img StableDiffusionImg2Img
        StableDiffusionInpaint StableDiffusionUpscale StableDiffusionXL StableDiffusionXLAdapter
        StableDiffusionXLControlNet StableDiffusionXLControlNetImg2Img
        StableDiffusionXLControlNetInpaint StableDiffusionXLControlNetUnion
        StableDiffusionXLControlNetUnionImg2Img StableDiffusionXLControlNetUnionInpaint
        StableDiffusionXLImg2Img StableDiffusionXLInpaint""",
    _PERTURBED: """
        StableDiffusion3PAG StableDiffusion3PAGImg2Img StableDiffusionControlNetPAG
        StableDiffusionPAG StableDiffusionPAGImg2Img StableDiffusionPAGInpaint
        StableDiffusionXLControlNetPAG StableDiffusionXLControlNetPAGImg2Img StableDiffusionXLPAG
        StableDiffusionXLPAGImg2Img StableDiffusionXLPAGInpaint""",
    _OF_IMAGES: "StableDiffusionInstructPix2Pix StableDiffusionXLInstructPix2Pix",
    _LISTS: "ZImage ZImageControlNet ZImageControlNetInpaint ZImageImg2Img ZImageInpaint",
    _TWO_CALLS: """
        Chroma ChromaImg2Img ChromaInpaint CogView4 CogView4Control Flux2Klein Flux2KleinInpaint
        Lumina2 SkyReelsV2 SkyReelsV2ImageToVideo Wan WanImageToVideo WanVACE WanVideoToVideo""",
    _TRUE_CFG: """
        Flux FluxControlNet FluxImg2Img FluxInpaint FluxKontext FluxKontextInpaint HunyuanVideo
        HunyuanVideoImageToVideo QwenImage QwenImageControlNet QwenImageControlNetInpaint
        QwenImageEdit QwenImageEditInpaint QwenImageEditPlus QwenImageImg2Img QwenImageInpaint
        QwenImageLayered""",
    _NEVER: """
        Flux2 FluxControl FluxControlImg2Img FluxControlInpaint FluxControlNetImg2Img
        FluxControlNetInpaint FluxFill LatentConsistencyModel LatentConsistencyModelImg2Img
        SanaSprint SanaSprintImg2Img""",
}

WAYS: Mapping[str, Way] = {
    f"{name}Pipeline.__call__": way for way, names in _NAMES.items() for name in names.split()
}
"""By the qualified name of the method that runs."""


def way(pipe: object) -> Way | None:
    """How a pipeline guides; None if it does not say so.

    A class derived from one of these is taken for it; what runs is looked at in each call again.
    """
    for kind in type(pipe).__mro__:
        if (found := WAYS.get(f"{kind.__name__}.__call__")) is not None:
            return found
    return None


def encodes_negative(method: str, values: Mapping[str, Any]) -> bool | None:
    """Whether a running method is at the negative prompt; None if it does not tell.

    Args:
        method: Its qualified name.
        values: Its variables.
    """
    name, _, inner = method.partition("Pipeline.")
    encodes = inner in ("encode_prompt", "_encode_prompt")
    if encodes and name.startswith("StableDiffusion3"):
        return values.get("prompt_embeds") is not None  # the negative one comes second
    if encodes and name.startswith(("AnimateDiff", "StableDiffusion")):
        return "uncond_input" in values
    if name.startswith("Flux") and inner == "__call__":
        return "text_ids" in values  # of the prompt, which comes first
    return None
