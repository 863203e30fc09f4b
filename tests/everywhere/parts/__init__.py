"""Tiny real pipelines of every family, by the name that the docs give them."""

from __future__ import annotations

from collections.abc import Callable

from . import flow, flux, sana, sd, sdxl, video
from .case import Case

PIPELINES: dict[str, Callable[[int], Case]] = {
    "StableDiffusion": sd.text2img,
    "StableDiffusion img2img": sd.img2img,
    "StableDiffusion inpaint": sd.inpaint,
    "StableDiffusionXL": sdxl.text2img,
    "StableDiffusionXL img2img": sdxl.img2img,
    "StableDiffusionXL inpaint": sdxl.inpaint,
    "StableDiffusionXL ControlNet": sdxl.controlnet,
    "StableDiffusion3": flow.sd3,
    "Flux": flux.text2img,
    "Flux with true CFG": flux.true_cfg,
    "Flux img2img": flux.img2img,
    "PixArt-Sigma": sana.pixart,
    "Sana": sana.sana,
    "QwenImage": flow.qwen,
    "ZImage": flow.z_image,
    "Lumina2": flow.lumina2,
    "AuraFlow": flow.aura,
    "Chroma": flux.chroma,
    "Flux2": flux.flux2,
    "LTX": video.ltx,
    "CogVideoX": video.cogvideox,
    "Wan 2.1": video.wan,
    "Wan 2.2, two transformers": video.wan22,
    "Wan 2.2, a timestep per token": video.wan_by_token,
    "AnimateDiff": sd.animatediff,
}
