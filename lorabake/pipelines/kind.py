"""Whether a pipeline paints from a text alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from ..errors import BaseModelError
from ..runtime.manifest import DENOISERS


def check_kind(config: object, where: str) -> None:
    """Refuse a model that is not for text-to-image, before its weights are loaded.

    Args:
        config: What its `model_index.json` holds.
        where: The model, for messages.

    Raises:
        BaseModelError: It names no pipeline, one that takes no prompt or needs an image, or no
            denoiser.
    """
    if what := _unfit(config):
        advice = "Name the folder or id of a text-to-image model in diffusers format"
        raise BaseModelError(what, where=where, advice=advice)


def _unfit(config: object) -> str:
    """Why a model cannot be used; empty if it can."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    values: Mapping[object, object] = config if isinstance(config, dict) else {}
    name = values.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type):
        return f"its model_index.json names no pipeline that diffusers {diffusers.__version__} has"
    takes = inspect.signature(kind.__call__).parameters
    # Some paint with an image or without; diffusers knows which.
    free = "image" not in takes or kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    if "prompt" not in takes or "controlnet_conditioning_scale" in takes or not free:
        return f"is made for {name}, which does not paint from a text alone"
    if all(values.get(part) in (None, [None, None]) for part in DENOISERS):
        return f"has no {' or '.join(DENOISERS)}"
    return ""
