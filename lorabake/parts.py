"""Parts of a network: the labels under which pictures and tables group layers."""

from __future__ import annotations

_STAGES = {
    "down_blocks": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "transformer_blocks": "blocks",
    "single_transformer_blocks": "single",
}
_NUMBERED = ("down", "up")


def part(component: str, module: str) -> str:
    """The part of the network that a layer belongs to, for example `down 1`, `mid`, `text 2`.

    Args:
        component: Pipeline component of the layer.
        module: Its path inside the component, diffusers naming.
    """
    if component.startswith("text_encoder"):
        return component.replace("text_encoder", "text").replace("_", " ")
    head, _, rest = module.partition(".")
    label = _STAGES.get(head, "other")
    index = rest.partition(".")[0]
    return f"{label} {index}" if label in _NUMBERED and index.isdigit() else label
