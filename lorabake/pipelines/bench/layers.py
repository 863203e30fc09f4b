"""The denoiser's layers of a bundle, found without the runtime that is being measured."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import AttachError, listed
from ...runtime import Bundle
from ...runtime.caller import uncompiled
from ...runtime.manifest import Layer
from ...runtime.weights import DTYPES

Weighted = nn.Linear | nn.Conv2d


def roots(bundle: Bundle, pipe: Any) -> dict[str, nn.Module]:  # noqa: ANN401 - any pipeline
    """The denoisers that a bundle has layers of, out of any torch.compile wrapper.

    Text encoders run once per image; what a LoRA costs is decided in the denoiser.
    """
    names = dict.fromkeys(layer.component for layer in bundle.manifest.layers)
    modules = {n: getattr(pipe, n) for n in names if not n.startswith("text_encoder")}
    return {name: cast(nn.Module, uncompiled(module)) for name, module in modules.items()}


def targets(bundle: Bundle, pipe: Any) -> list[tuple[Layer, Weighted]]:  # noqa: ANN401 - as above
    """The layers of the denoisers with their modules.

    Raises:
        AttachError: One is neither linear nor convolutional, wrapped by PEFT for example.
    """
    denoisers = roots(bundle, pipe)
    found = [
        (layer, denoisers[layer.component].get_submodule(layer.module))
        for layer in bundle.manifest.layers
        if layer.component in denoisers
    ]
    if odd := [str(layer) for layer, module in found if not isinstance(module, Weighted)]:
        raise AttachError(f"layers that are neither linear nor convolutional: {listed(odd, 2)}")
    return [(layer, module) for layer, module in found if isinstance(module, Weighted)]


def dense(bundle: Bundle, pipe: Any) -> list[tuple[Layer, Tensor]]:  # noqa: ANN401 - as above
    """The weights of these layers, to be set by hand.

    Raises:
        AttachError: One is quantised, offloaded or shared with another layer.
    """
    found = [(layer, module.weight.detach()) for layer, module in targets(bundle, pipe)]
    if odd := [str(layer) for layer, weight in found if not _plain(bundle.shape(layer), weight)]:
        raise AttachError(f"weights that cannot be set by hand: {listed(odd, 2)}")
    places = [weight.data_ptr() for _, weight in found]
    if len(set(places)) < len(places):
        raise AttachError("weights that several layers share cannot be set for one of them")
    return found


def device(bundle: Bundle, pipe: Any) -> torch.device:  # noqa: ANN401 - as above
    """Where the denoiser computes."""
    given = getattr(pipe, "_execution_device", None)  # of an offloaded one
    root = next(iter(roots(bundle, pipe).values()))
    return given if isinstance(given, torch.device) else next(root.parameters()).device


def _plain(shape: tuple[int, ...], weight: Tensor) -> bool:
    return (
        type(weight) is Tensor
        and weight.dtype in DTYPES
        and tuple(weight.shape) == shape
        and weight.device.type != "meta"
        and not weight.is_inference()
    )
