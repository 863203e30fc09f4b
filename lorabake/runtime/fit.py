"""Where a bundle's layers are in a pipeline, and whether they fit there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .bundle import Bundle
from .errors import AttachError, listed
from .manifest import DENOISERS
from .patch import Patchable

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def denoiser_name(pipe: Any) -> str:  # noqa: ANN401 - anything may be called a pipeline
    """The component that removes the noise.

    Raises:
        AttachError: The pipeline has none, or no scheduler.
    """
    names = [name for name in DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    if not names or getattr(pipe, "scheduler", None) is None:
        lacking = "scheduler" if names else f"{' or '.join(DENOISERS)}"
        raise AttachError(
            f"{type(pipe).__name__} has no {lacking}",
            advice="A bundle attaches to a text-to-image pipeline of diffusers",
        )
    return names[0]


def components(bundle: Bundle, pipe: Any) -> dict[str, nn.Module]:  # noqa: ANN401 - as above
    """The modules that a replay touches, the denoiser first, out of any torch.compile wrapper.

    Raises:
        AttachError: The pipeline lacks one.
    """
    found: dict[str, nn.Module] = {}
    for name in (denoiser_name(pipe), *(layer.component for layer in bundle.manifest.layers)):
        module = getattr(pipe, name, None)
        module = getattr(module, "_orig_mod", module)
        if not isinstance(module, nn.Module):
            raise AttachError(
                f"the bundle has layers of {name}, which {type(pipe).__name__} lacks; "
                f"{_families(bundle, pipe, found)}",
                where=str(bundle.path),
                advice=f"Load a pipeline of that family, with its {name}",
            )
        found[name] = module
    return found


def fit(bundle: Bundle, pipe: Any, roots: Mapping[str, nn.Module]) -> list[Patchable]:  # noqa: ANN401 - as above
    """The modules of a bundle's layers, in the manifest's order.

    Raises:
        AttachError: A layer has no module, or one of another kind or shape.
    """
    modules = {n: dict(root.named_modules(remove_duplicate=False)) for n, root in roots.items()}
    fits: list[Patchable] = []
    misfits: list[str] = []
    for layer in bundle.manifest.layers:
        module = _find(modules[layer.component], layer.module)
        misfit = _misfit(module, bundle.shape(layer))
        if isinstance(module, Patchable) and not misfit:
            fits.append(module)
        else:
            misfits.append(f"{layer} ({misfit})")
    if misfits:
        raise AttachError(
            f"{len(misfits)} of {len(bundle.manifest.layers)} layers do not fit: "
            f"{listed(misfits, 3)}; {_families(bundle, pipe, roots)}",
            where=str(bundle.path),
            advice="Use a pipeline of the model that the two LoRAs were trained on",
        )
    return fits


def plain(module: Patchable, shared: frozenset[int]) -> bool:
    """Whether a weight can be changed in place: dense, floating, here, and this layer's alone."""
    weight = module.weight
    return (
        type(weight.data) is Tensor
        and weight.dtype in _DTYPES
        and weight.device.type != "meta"
        and not weight.is_inference()
        and tuple(weight.shape) == _shape(module)
        and id(weight) not in shared
    )


def shared_weights(root: nn.Module) -> frozenset[int]:
    """Ids of the parameters that stand in a model more than once."""
    seen: set[int] = set()
    twice: set[int] = set()
    for _, parameter in root.named_parameters(remove_duplicate=False):
        (twice if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(twice)


def compute_dtype(module: Patchable, root: nn.Module) -> torch.dtype:
    """What a branch beside this layer computes in: its weight's dtype, unless that is quantised."""
    for dtype in (module.weight.dtype, getattr(root, "dtype", None)):
        if dtype in _DTYPES:
            return dtype
    return torch.float32


def _find(modules: dict[str, nn.Module], path: str) -> nn.Module | None:
    """A module by its path; PEFT puts its wrapper in the place of the layer it adapts."""
    stripped = path.removeprefix("text_model.")
    for spelling in (path, stripped, f"text_model.{path}"):
        if (module := modules.get(spelling)) is not None:
            while isinstance(base := getattr(module, "base_layer", None), nn.Module):
                module = base
            return module
    return None


def _shape(module: Patchable) -> tuple[int, ...]:
    """Shape of the dense weight, also where what is stored is packed."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def _misfit(module: nn.Module | None, shape: tuple[int, ...]) -> str:
    """Why a layer of this shape cannot go there; empty if it can."""
    if module is None:
        return "not there"
    if not isinstance(module, Patchable):
        return f"{type(module).__name__}, neither linear nor convolutional"
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return "a convolution in groups"
    if _shape(module) != shape:
        return f"{list(_shape(module))} there, {list(shape)} in the bundle"
    return ""


def _families(bundle: Bundle, pipe: Any, roots: Mapping[str, nn.Module]) -> str:  # noqa: ANN401 - as above
    """For a message: the family that the bundle is for, and what the pipeline seems to be."""
    base = f" ({bundle.manifest.base})" if bundle.manifest.base else ""
    denoiser = next(iter(roots.values()))
    seems = f", which looks like {name}" if (name := _family(denoiser)) else ""
    return (
        f"the bundle is for {bundle.manifest.family}{base}, the pipeline is "
        f"{type(pipe).__name__} with {type(denoiser).__name__}{seems}"
    )


def _family(denoiser: nn.Module) -> str | None:
    """A guess at the model family, for messages only."""
    kind, config = type(denoiser).__name__, getattr(denoiser, "config", None)
    if kind.startswith("UNet2DCondition"):
        if getattr(config, "addition_embed_type", None) == "text_time":
            return "sdxl"
        return "sd2" if getattr(config, "cross_attention_dim", None) == 1024 else "sd15"
    return {"Flux": "flux", "SD3": "sd3"}.get(kind.partition("Transformer")[0])
