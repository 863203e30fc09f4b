"""Module names of Stability's UNet code, which kohya's trainer uses for SDXL, ⇄ diffusers names.

Blocks are numbered through there: `input_blocks_4_1_…` is `down_blocks.1.attentions.0.…`. The
arithmetic below has two layers per block built in, as all published SD and SDXL UNets have.
"""

from __future__ import annotations

import re

from .kohya import dotted, underscored

_WHOLE = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_WHOLE_BACK, _RESNET_BACK, _MIDDLE_BACK = (
    {new: old for old, new in table.items()} for table in (_WHOLE, _RESNET, _MIDDLE)
)
_STRIDE = 3
"""Two layers and one resampler per block."""


def from_sgm(name: str) -> str | None:
    """The diffusers module path of a name such as `output_blocks_2_1_proj_in`; None if unknown."""
    if name in _WHOLE:
        return _WHOLE[name]
    if match := re.fullmatch(r"middle_block_([012])_(.+)", name):
        return _join("mid_block", _MIDDLE[match[1]], match[2])
    if match := re.fullmatch(r"(input|output)_blocks_(\d+)_([012])_(.+)", name):
        side, slot, inner = match[1], match[3], match[4]
        block, layer = divmod(int(match[2]) - (side == "input"), _STRIDE)
        if (side, inner) == ("input", "op"):
            return f"down_blocks.{block}.downsamplers.0.conv"
        if (side, inner) == ("output", "conv"):
            return f"up_blocks.{block}.upsamplers.0.conv"
        stem = {"input": "down_blocks", "output": "up_blocks"}[side]
        kind = {"0": "resnets", "1": "attentions"}.get(slot)
        return _join(f"{stem}.{block}", f"{kind}.{layer}", inner) if kind else None
    return None


def _join(block: str, layer: str, inner: str) -> str | None:
    if layer.startswith("resnets"):
        return f"{block}.{layer}.{_RESNET[inner]}" if inner in _RESNET else None
    return f"{block}.{layer}.{dotted(inner)}"


def to_sgm(module: str) -> str | None:
    """The inverse of `from_sgm`; None for a module that Stability's UNet does not have."""
    if module in _WHOLE_BACK:
        return _WHOLE_BACK[module]
    if match := re.fullmatch(r"mid_block\.((?:resnets|attentions)\.\d+)\.(.+)", module):
        layer, inner = match[1], _inner(match[1], match[2])
        return f"middle_block_{_MIDDLE_BACK[layer]}_{inner}" if layer in _MIDDLE_BACK else None
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks_{_STRIDE * (int(match[1]) + 1)}_0_op"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        return f"output_blocks_{_STRIDE * int(match[1]) + 2}_2_conv"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", module):
        side, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if layer > (1 if side == "down" else 2):
            return None
        number = _STRIDE * block + layer + (side == "down")
        stem = {"down": "input", "up": "output"}[side]
        slot = 0 if kind == "resnets" else 1
        return f"{stem}_blocks_{number}_{slot}_{_inner(kind, match[5])}"
    return None


def _inner(layer: str, inner: str) -> str:
    return _RESNET_BACK.get(inner, inner) if layer.startswith("resnets") else underscored(inner)
