"""The names of a bundle's tensors, as a reader of ordinary LoRA files understands them."""

from __future__ import annotations

import torch

from ..errors import LoraFileError, VerifyError, listed
from ..lora import dialects, factors
from ..runtime import Bundle


def check_names(bundle: Bundle) -> None:
    """Check that the tensor names alone lead to the layers that the manifest names.

    Only names and shapes are looked at: the tensors stand for themselves on the meta device.

    Raises:
        VerifyError: Names lead nowhere or to other layers, so other tools would drop them.
    """
    tensors: dict[str, torch.Tensor] = {}
    for layer in bundle.manifest.layers:
        out, *width = bundle.shape(layer)
        rank = sum(layer.ranks)
        tensors[layer.down] = torch.empty(rank, *width, device="meta")
        tensors[layer.up] = torch.empty(out, rank, *(1 for _ in width[1:]), device="meta")
    where = str(bundle.path)
    try:
        dialect = dialects.detect(tensors.keys(), where)
        parts = factors.split(dialect, tensors, where)
        read = factors.assemble(dialect, parts, tensors, {}, where)
    except LoraFileError as error:
        raise VerifyError(str(error)) from error
    lost = {str(layer) for layer in bundle.manifest.layers} ^ {str(name) for name in read}
    if lost:
        raise VerifyError(
            f"{where}: tensor names and manifest disagree about {listed(sorted(lost))}."
        )
