"""Dotted paths of LoRA files → layer names: which component, which module in it."""

from __future__ import annotations

import re

from .types import LayerName

_WRAPPERS = re.compile(r"^(?:base_model\.model\.)?(?:transformer\.)?")
_COMPONENT = re.compile(r"(unet|transformer(?:_2)?|text_encoder(?:_[23])?)\.(.+)")
_HEADS = {
    "unet": {
        "conv_in", "conv_out", "time_embedding", "add_embedding", "down_blocks", "mid_block",
        "up_blocks",
    },
    "text_encoder": {"text_model", "text_projection", "encoder"},
}  # fmt: skip


def layer_name(path: str) -> LayerName:
    """`unet.mid_block.….to_q` → (`unet`, `mid_block.….to_q`).

    A path without a component is placed by its first word: the parts of a UNet and of a text
    encoder are well known, anything else is in a transformer.
    """
    path = path.removeprefix("base_model.model.")
    match = _COMPONENT.fullmatch(path)
    if match:
        return canonical(match[1], match[2])
    head = path.partition(".")[0]
    component = next((c for c, heads in _HEADS.items() if head in heads), "transformer")
    return canonical(component, path)


def bare(path: str) -> str:
    """A path without what programs put before the model's own: `base_model.model.`, `transformer.`.

    `base_model.model.transformer.double_blocks.0.…` → `double_blocks.0.…`.
    """
    return _WRAPPERS.sub("", path, count=1)


def canonical(component: str, module: str) -> LayerName:
    """Undo the one difference between releases: transformers 5 drops CLIP's `text_model.`."""
    if component.startswith("text_encoder") and module.startswith("encoder.layers."):
        module = f"text_model.{module}"
    return LayerName(component, module)
