"""Where a bundle's layers are in a pipeline, and whether they fit there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .bundle import Bundle
from .caller import uncompiled
from .errors import AttachError, listed
from .manifest import DENOISERS
from .target import Patchable, Target, unwrapped
from .weights import shape, unloaded


def denoisers(pipe: Any) -> list[str]:  # noqa: ANN401 - anything may be called a pipeline
    """The components that remove noise.

    Raises:
        AttachError: The pipeline has none, or no scheduler.
    """
    names = [n for n in DENOISERS if isinstance(getattr(pipe, n, None), nn.Module)]
    if not names or getattr(pipe, "scheduler", None) is None:
        lacking = "scheduler" if names else f"{' or '.join(DENOISERS[:2])}"
        raise AttachError(
            f"{type(pipe).__name__} has no {lacking}",
            advice="A bundle attaches to a pipeline of diffusers with a denoiser and a scheduler",
        )
    return names


def components(bundle: Bundle, pipe: Any) -> dict[str, nn.Module]:  # noqa: ANN401 - as above
    """The modules that a replay touches, a denoiser first, out of any torch.compile wrapper.

    Raises:
        AttachError: The pipeline lacks one.
    """
    found: dict[str, nn.Module] = {}
    wanted = dict.fromkeys(layer.component for layer in bundle.manifest.layers)
    names = denoisers(pipe)
    first = next((name for name in names if name in wanted), names[0])
    for name in dict.fromkeys((first, *wanted)):
        module = uncompiled(getattr(pipe, name, None))
        if not isinstance(module, nn.Module):
            raise AttachError(
                f"the bundle has layers of {name}, which {type(pipe).__name__} lacks; "
                f"{_families(bundle, pipe, found)}",
                where=str(bundle.path),
                advice=f"Load a pipeline of that family, with its {name}",
            )
        found[name] = module
    return found


def fit(bundle: Bundle, pipe: Any, roots: Mapping[str, nn.Module]) -> list[Target]:  # noqa: ANN401 - as above
    """The modules of a bundle's layers, in the manifest's order.

    Raises:
        AttachError: A layer has no module, one of another kind or shape, or one that is not used.
    """
    layers = [(one.component, one.module, bundle.shape(one)) for one in bundle.manifest.layers]
    targets, misfits = locate(roots, layers, "the bundle")
    if misfits:
        raise AttachError(
            f"{len(misfits)} of {len(layers)} layers do not fit: "
            f"{listed(misfits, 3)}; {_families(bundle, pipe, roots)}",
            where=str(bundle.path),
            advice="Use a pipeline of the model that the two LoRAs were trained on",
        )
    return targets


def locate(
    roots: Mapping[str, nn.Module],
    layers: Iterable[tuple[str, str, tuple[int, ...]]],
    given: str,
) -> tuple[list[Target], list[str]]:
    """Look for layers in the components of a pipeline.

    Args:
        roots: The components, by name.
        layers: Component, module path and shape of ΔW of each.
        given: What they are the layers of, for messages.

    Returns:
        Those that fit, in order, and one phrase for each that does not.
    """
    modules = {n: dict(root.named_modules(remove_duplicate=False)) for n, root in roots.items()}
    targets: list[Target] = []
    misfits: list[str] = []
    for component, path, wanted in layers:
        target = _find(modules.get(component, {}), path)
        misfit = _misfit(target, wanted, given)
        if isinstance(target, Target) and not misfit:
            targets.append(target)
        else:
            misfits.append(f"{component}.{path} ({misfit})")
    return targets, misfits


def _find(modules: Mapping[str, nn.Module], path: str) -> Target | nn.Module | None:
    """A layer by its path; the module that stands there if it is none; None if none does."""
    stripped = path.removeprefix("text_model.")
    for spelling in (path, stripped, f"text_model.{path}"):
        if spelling in modules:
            module, parts = unwrapped(modules[spelling]), spelling.split(".")
            if not isinstance(module, Patchable):
                return module
            inside = tuple(modules[".".join(parts[:i])] for i in range(len(parts)))
            return Target(module, inside, parts[-1])
    return None


def _misfit(target: Target | nn.Module | None, wanted: tuple[int, ...], given: str) -> str:
    """Why a layer of this shape cannot go there, or would have no effect; empty if it can."""
    if target is None:
        return "not there"
    if not isinstance(target, Target):
        return f"{type(target).__name__}, neither linear nor convolutional"
    module = target.module
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        return "a convolution in groups"
    if shape(module) != wanted:
        return f"{list(shape(module))} there, {list(wanted)} in {given}"
    if target.bypassed():
        return "bypassed since fuse_qkv_projections; call unfuse_qkv_projections"
    return "its weight is on the meta device, not loaded" if unloaded(target) else ""


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
