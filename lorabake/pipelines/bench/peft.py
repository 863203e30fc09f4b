"""A bundle's LoRAs as PEFT adapters, all of them active at once."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AttachError, shortened
from ...runtime import Bundle
from ...runtime.manifest import Layer
from ...runtime.weights import compute_dtype
from .layers import Weighted, roots, targets

_NAMES = ("content", "style")


@contextlib.contextmanager
def adapters(bundle: Bundle, pipe: Any, sources: Sequence[int]) -> Generator[None]:  # noqa: ANN401 - any pipeline
    """Inject one adapter per source into the denoisers.

    Args:
        bundle: Whose factors the adapters get, with alpha = rank.
        pipe: Any pipeline.
        sources: 0 for content, 1 for style.

    Raises:
        AttachError: PEFT refuses the model.
    """
    denoisers = roots(bundle, pipe)
    layers = targets(bundle, pipe)
    with contextlib.ExitStack() as undo:
        for root in denoisers.values():
            undo.enter_context(_unchanged(root))
        try:
            for source in sources:
                for name, root in denoisers.items():
                    own = [(x, m) for x, m in layers if x.component == name and x.ranks[source]]
                    if own:
                        _inject(root, bundle, own, source)
            _activate(denoisers, [_NAMES[source] for source in sources])
        except Exception as error:  # of many types, for every kind of weight another
            reason = shortened(str(error).partition("\n")[0], 120)
            raise AttachError(f"PEFT refuses ({type(error).__name__}: {reason})") from error
        yield


def _inject(
    root: nn.Module, bundle: Bundle, layers: list[tuple[Layer, Weighted]], source: int
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    ranks = {layer.module: layer.ranks[source] for layer, _ in layers}
    widest = max(ranks.values())
    # A path alone would also stand for every longer path that ends with it.
    odd = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != widest}
    config: Any = LoraConfig(
        r=widest, lora_alpha=widest, rank_pattern=odd, alpha_pattern=dict(odd),
        target_modules=list(ranks), inference_mode=True,
    )  # fmt: skip
    empty = dict.fromkeys((f"{path}.lora_A.weight" for path in ranks), torch.empty(0))
    with warnings.catch_warnings(action="ignore"):
        # Empty ones, because the factors are at hand; and nowhere else than where they belong.
        inject_adapter_in_model(
            config, root, _NAMES[source], low_cpu_mem_usage=True, state_dict=empty
        )
    otherwise = getattr(root, "dtype", torch.float32)
    for layer, module in layers:
        wrapper: Any = root.get_submodule(layer.module)
        dtype = compute_dtype(module, otherwise)
        factors = bundle.factors(layer, source, module.weight.device, dtype)
        for home, factor in zip((wrapper.lora_A, wrapper.lora_B), factors, strict=True):
            if home[_NAMES[source]].weight.shape != factor.shape:
                raise ValueError(f"{layer} got another rank")
            home[_NAMES[source]].weight = nn.Parameter(factor.contiguous(), requires_grad=False)


def _activate(denoisers: dict[str, nn.Module], names: list[str]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for root in denoisers.values():
        for module in root.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(names, inference_mode=True)


@contextlib.contextmanager
def _unchanged(root: nn.Module) -> Generator[None]:
    """Put modules, attributes and gradient flags back: PEFT's own removal leaves some."""
    children = [(m, dict(m.named_children())) for m in root.modules()]
    flags: list[tuple[Tensor, bool]] = [(p, p.requires_grad) for p in root.parameters()]
    modes = [(m, m.training) for m in root.modules()]
    attributes = dict(vars(root))
    try:
        yield
    finally:
        for parent, named in children:
            for name, child in named.items():
                if getattr(parent, name) is not child:
                    setattr(parent, name, child)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        for name in vars(root).keys() - attributes.keys():
            delattr(root, name)
        vars(root).update(attributes)
