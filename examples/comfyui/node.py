"""The node: a bundle from the folder of LoRAs, put into a model and a CLIP."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import comfy.lora
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .reading import DENOISERS, Bundle, BundleError, Constant, Layer, OverrideError, read
from .replay import Branch, Replay
from .targets import Key, find

_STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
HALVES = ("as the bundle says", "both", "conditional")
_PROGRESS = {"min": 0.0, "max": 1.0, "step": 0.001, "round": 0.0001}


class LoadBundle:
    """Replays a bundle's plan; several in a row, and plain LoRAs beside them, add up."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = "Put a lorabake bundle into a model and replay its plan, step by step."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the name is ComfyUI's
        """What the node asks for."""
        return {
            "required": {
                "model": ("MODEL",),
                "bundle": (folder_paths.get_filename_list("loras"),),
                "content_strength": ("FLOAT", _STRENGTH),
                "style_strength": ("FLOAT", _STRENGTH),
            },
            "optional": {
                "half": (
                    HALVES,
                    {"default": HALVES[0], "tooltip": "Where the LoRAs act: for positive and "
                     "negative conditioning, or for the positive (conditional) one alone."},
                ),
                "clip": ("CLIP", {"tooltip": "Only for bundles with layers of a text encoder."}),
                "start": (
                    "FLOAT",
                    {"default": 0.0, "tooltip": "Where in the whole run the sampler begins: "
                     "1 - denoise, or start_at_step / steps."} | _PROGRESS,
                ),
                "end": (
                    "FLOAT",
                    {"default": 1.0, "tooltip": "Where in the whole run the sampler ends: "
                     "1, or end_at_step / steps."} | _PROGRESS,
                ),
            },
        }  # fmt: skip

    def load(
        self,
        model: Any,  # noqa: ANN401 - a ModelPatcher of ComfyUI
        bundle: str,
        content_strength: float = 1.0,
        style_strength: float = 1.0,
        clip: Any = None,  # noqa: ANN401 - a CLIP of ComfyUI
        start: float = 0.0,
        end: float = 1.0,
        half: str = HALVES[0],
    ) -> tuple[Any, Any]:
        """The model and the CLIP with the bundle in them; those that were given stay as they are.

        Raises:
            BundleError: The file is not a bundle, damaged, or chooses live.
            AttachError: It does not fit the model.
            OverrideError: `start` is not before `end`.
        """
        opened = _static(read(folder_paths.get_full_path_or_raise("loras", bundle)))
        if not start < end:
            raise OverrideError(
                f"start {start} is not before end {end}", advice="Give 0 and 1 for a whole run"
            )
        strengths = (content_strength, style_strength)
        layers = opened.manifest.layers
        inside = [layer for layer in layers if layer.component in DENOISERS]
        part = (_exact(start), _exact(end))
        one = (opened.manifest.half if half == HALVES[0] else half) == "conditional"
        model = _with_denoiser(model, opened, inside, strengths, part, conditional=one)
        if texts := [layer for layer in layers if layer.component not in DENOISERS]:
            if clip is None:
                logging.info("%s: %d layers of text encoders left out", bundle, len(texts))
            else:
                clip = _with_texts(clip, opened, texts, strengths)
        return model, clip


def _static(bundle: Bundle) -> Bundle:
    """The bundle, if its plan is known before the image."""
    if bundle.manifest.live:
        raise BundleError(
            "its layers choose live, from features of the image, which this node cannot do",
            where=str(bundle.path),
            advice="Make a static bundle of it with `lorabake record`",
        )
    if bundle.manifest.guidance is not None:
        logging.warning("%s: its guidance of the latents is left out", bundle.path.name)
    bundle.check_finite()
    return bundle


def _exact(value: float) -> Fraction:
    return Fraction(value).limit_denominator(10_000)


def _with_denoiser(
    model: Any,  # noqa: ANN401 - a ModelPatcher of ComfyUI
    bundle: Bundle,
    layers: list[Layer],
    strengths: tuple[float, float],
    part: tuple[Fraction, Fraction],
    *,
    conditional: bool,
) -> Any:  # noqa: ANN401 - another one
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    targets = find(model.model, bundle, layers, names)
    constant = [] if conditional else [x for x in layers if isinstance(x.rule, Constant)]
    model = model.clone()
    if constant:
        model.add_patches(_patches(bundle, constant, strengths, names))
    branches = [
        Branch(bundle, layer, target)
        for layer, target in zip(layers, targets, strict=True)
        if conditional or not isinstance(layer.rule, Constant)
    ]
    if branches:
        replay = Replay(bundle, branches, strengths, *part, conditional=conditional)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "lorabake", replay)
    return model


def _with_texts(
    clip: Any,  # noqa: ANN401 - a CLIP of ComfyUI
    bundle: Bundle,
    layers: list[Layer],
    strengths: tuple[float, float],
) -> Any:  # noqa: ANN401 - another one
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    find(clip.cond_stage_model, bundle, layers, names)
    clip = clip.clone()
    clip.add_patches(_patches(bundle, layers, strengths, names))
    return clip


def _patches(
    bundle: Bundle, layers: list[Layer], strengths: tuple[float, float], names: dict[str, Key]
) -> dict[Key, Any]:
    """What does not change is left to ComfyUI, as an ordinary LoRA."""
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        gates = layer.rule.gates if isinstance(layer.rule, Constant) else (0.0, 0.0)
        pairs = [bundle.factors(layer, source, dtype=torch.float32) for source in (0, 1)]
        weights = [gate * strength for gate, strength in zip(gates, strengths, strict=True)]
        tensors[layer.down] = torch.cat([down for down, _ in pairs])
        tensors[layer.up] = torch.cat(
            [up * weight for (_, up), weight in zip(pairs, weights, strict=True)], dim=1
        )
    return comfy.lora.load_lora(tensors, names)
