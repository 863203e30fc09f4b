"""Convolutions that a file holds flat, `[out, in·kh·kw]`: their kernels are the model's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ...errors import LoraFileError
from ..types import LayerName, LowRank

_KERNELS = (
    (re.compile(r"unet\.(.+\.)?(conv_in|conv_out|conv1|conv2|(down|up)samplers\.0\.conv)"), 3),
    (re.compile(r"unet\..+\.conv_shortcut"), 1),
    (re.compile(r"transformer\.pos_embed\.proj"), 2),
)
_PROJECTION = re.compile(r"unet\..+\.attentions\.\d+\.proj_(in|out)")
_CONVOLUTIONAL = ("sd15",)
"""Families whose attentions are entered and left by convolutions, not linear layers."""


def unflattened(
    layers: Mapping[LayerName, LowRank], converted: Collection[LayerName], family: str, where: str
) -> dict[LayerName, LowRank]:
    """The layers, with the kernels of convolutions in the shapes of those that lack them.

    Args:
        layers: All layers of a file.
        converted: Those that were no plain LoRA.
        family: The file's family.
        where: The file, for messages.

    Raises:
        LoraFileError: A width is no multiple of the kernel's area.
    """
    return {
        name: _reshaped(name, factors, family, where)
        if name in converted and factors.down.ndim == 2
        else factors
        for name, factors in layers.items()
    }


def _reshaped(name: LayerName, of: LowRank, family: str, where: str) -> LowRank:
    side = _side(name, family)
    if side is None:
        return of
    rank, width = of.down.shape
    if width % side**2:
        raise LoraFileError(
            f"{name} is a convolution with a kernel of {side} × {side}, but the file has "
            f"{width} inputs for it, which is no multiple of {side**2}",
            where=where,
            advice="Check that it was trained on this base model, or save it again",
        )
    down = of.down.reshape(rank, -1, side, side)
    return LowRank(down, of.up[:, :, None, None], of.scale)


def _side(name: LayerName, family: str) -> int | None:
    """The kernel's height and width; None for linear layers."""
    if family in _CONVOLUTIONAL and _PROJECTION.fullmatch(str(name)):
        return 1
    return next((side for pattern, side in _KERNELS if pattern.fullmatch(str(name))), None)
