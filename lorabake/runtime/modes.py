"""Which layers are fused and which get a branch beside them, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import nn

from .bundle import Bundle
from .errors import AttachError, listed
from .manifest import Layer
from .plan import Live, Table, Threshold
from .target import Target
from .weights import obstacle, shared_weights

Mode = Literal["auto", "fused", "hooks", "live"]


def reasons(
    bundle: Bundle,
    mode: Mode,
    targets: Sequence[Target],
    roots: Iterable[nn.Module],
    barred: Mapping[str, str],
) -> list[str]:
    """Why each layer is not fused; empty for those that are.

    Args:
        bundle: Whose layers.
        mode: As the user wants it.
        targets: The layers in the pipeline.
        roots: The components that hold them.
        barred: By component, why none of its layers can be fused, where there is a reason.

    Raises:
        AttachError: The mode is `fused`, and there is a reason; or it is `live`, and no layer
            chooses live; or a branch cannot stand where one is needed.
    """
    layers, where = bundle.manifest.layers, str(bundle.path)
    _check_live(bundle, mode)
    shared = shared_weights(roots)
    found = [
        "chosen live"
        if isinstance(layer.rule, Live)
        else "as asked for"
        if mode == "hooks"
        else barred.get(layer.component) or obstacle(target, shared)
        for layer, target in zip(layers, targets, strict=True)
    ]
    if mode == "fused" and any(found):
        odd = [f"{layer} ({why})" for layer, why in zip(layers, found, strict=True) if why]
        raise AttachError(
            f"layers that cannot be changed in place: {listed(odd, 3)}",
            where=where,
            advice="Use the mode auto or hooks, which leave such weights alone",
        )
    trios = zip(layers, targets, found, strict=True)
    if odd := [str(layer) for layer, target, why in trios if why and target.dora]:
        # It scales by the norm of a weight that lacks the branch.
        raise AttachError(
            f"layers have a DoRA adapter, which needs fused weights: {listed(odd, 3)}",
            where=where,
            advice="Delete that adapter, or use the mode fused with weights that allow it",
        )
    return found


def _check_live(bundle: Bundle, mode: Mode) -> None:
    if mode == "fused" and bundle.manifest.live:
        raise AttachError(
            f"a bundle of the method {bundle.manifest.method} chooses live, from features that are "
            "not known before each call",
            where=str(bundle.path),
            advice="Use the mode auto, or make a static bundle of it with `lorabake record`",
        )
    if mode == "live" and not bundle.manifest.live:
        raise AttachError(
            f"a bundle of the method {bundle.manifest.method} has its plan, there is nothing to "
            "choose live",
            where=str(bundle.path),
            advice="Use the mode auto, or make a bundle with the method dynamic",
        )


def branch_ranks(layers: Sequence[Layer]) -> list[int]:
    """The rank of each layer's branch: what can be live at once, in any layer that selects.

    The same for all of these in a component, so that its blocks are alike and share their graphs
    where each is compiled.
    """
    common: dict[str, int] = {}
    for layer in layers:
        if isinstance(layer.rule, Threshold | Table):
            common[layer.component] = max(common.get(layer.component, 0), *layer.ranks)
    own = [0 if isinstance(x.rule, Threshold | Table) else sum(x.ranks) for x in layers]
    return [max(n, common.get(x.component, 0)) for n, x in zip(own, layers, strict=True)]
