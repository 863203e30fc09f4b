"""Replay: a bundle's plan, applied to a pipeline for as long as it is attached."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Literal, Self, get_args

import torch
from torch import nn

from .bundle import Bundle
from .caller import scheduler_for
from .clock import Clock
from .compiled import forget_graphs
from .errors import AttachError, listed
from .fit import components, fit
from .fused import Fused, Keep
from .guard import Guard
from .hooked import Hooked
from .manifest import DENOISERS, Layer
from .overrides import STRENGTHS, chosen, scale_with, strength
from .patch import Gates, Patch
from .plan import Constant, Scale, gates
from .report import Report, summary
from .target import Target
from .tick import Column, Tick
from .weights import compute_dtype, obstacle, shared_weights

Mode = Literal["auto", "fused", "hooks"]

# On a component for as long as a replay holds it, where another copy of this package sees it too.
_MARK = "_lorabake_replay"


class Replay:
    """An attached bundle: a context manager that detaches at its end. `Bundle.attach` makes it."""

    def __init__(self, bundle: Bundle, pipe: Any, scale: Scale | None, strengths: Gates) -> None:  # noqa: ANN401 - anything may be a pipeline
        self._bundle, self._pipe = bundle, pipe
        self._scale, self._strengths = scale, strengths
        self._layers = bundle.manifest.layers
        self._roots: dict[str, nn.Module] = {}
        self._targets: list[Target] = []
        self._patches: list[Patch] = []
        self._ticks: dict[str, Tick] = {}
        self._guards: list[Guard] = []
        self._modes: list[str] = []
        self._reasons: list[str] = []
        self._columns: dict[Column, Column] = {}
        self._seen: dict[str, set[Fraction]] = {}
        self._name = type(pipe).__name__

    def __enter__(self) -> Self:
        if not self._roots:
            raise AttachError(
                "this replay has been detached", advice="Attach the bundle again with attach()"
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = summary(self._modes, self._reasons) if self._roots else "detached"
        return f"<Replay of {self._bundle.path.name} in {self._name}: {state}>"

    @torch.inference_mode(False)
    def detach(self) -> None:
        """Put every weight back bit for bit and take every hook off; a second time does nothing."""
        lost = {patch.lost() for patch in self._patches if isinstance(patch, Fused)} - {""}
        for hook in (*self._ticks.values(), *self._guards):
            hook.remove()
        while self._patches:
            self._patches.pop().remove()
        if Hooked.mode in self._modes:
            forget_graphs(self._pipe, self._roots)
        while self._roots:
            delattr(self._roots.popitem()[1], _MARK)
        # What is kept of base and LoRAs goes now, and not with the report.
        for held in (self._ticks, self._guards, self._targets, self._columns):
            held.clear()
        self._pipe = None
        if lost:
            warnings.warn(
                f"while a bundle was attached, {listed(sorted(lost))}; "
                "load the model and its LoRAs again",
                stacklevel=3,
            )

    def report(self) -> Report:
        """What was applied where, up to now."""
        progress = sorted(set[Fraction]().union(*self._seen.values()))
        return {
            "bundle": str(self._bundle.path),
            "method": self._bundle.manifest.method,
            "pipeline": self._name,
            "progress": [float(p) for p in progress],
            "memory": {
                "loras": sum(x.nbytes for patch in self._patches for x in patch.tensors()),
                "kept": sum(x.nbytes for patch in self._patches for x in patch.kept()),
            },
            "layers": [
                {
                    "component": layer.component,
                    "module": layer.module,
                    "mode": self._modes[i],
                    "why": self._reasons[i],
                    "gates": [
                        list(self._gates(i, p))
                        if p in self._seen.get(layer.component, progress)
                        else None
                        for p in progress
                    ],
                }
                for i, layer in enumerate(self._layers)
            ],
        }

    def start(self, mode: Mode, keep: Keep) -> None:
        """Check that the bundle fits, then patch the layers and set the clocks going."""
        roots = components(self._bundle, self._pipe)
        self._targets = fit(self._bundle, self._pipe, roots)
        self._reasons = self._why_not_fused(mode, roots)
        self._check_adapters()
        self._bundle.check_finite()
        self._hold(roots)
        otherwise = {name: getattr(root, "dtype", torch.float32) for name, root in roots.items()}
        for i in range(len(self._layers)):
            self._patch(i, keep, otherwise[self._layers[i].component])
        for name in roots:
            self._watch(name)
        if Hooked.mode in self._modes:
            forget_graphs(self._pipe, roots)

    def _why_not_fused(self, mode: Mode, roots: Mapping[str, nn.Module]) -> list[str]:
        """One reason per layer, empty where it will be fused.

        Raises:
            AttachError: The mode is `fused`, and there is a reason.
        """
        if mode == "hooks":
            return ["as asked for"] * len(self._layers)
        shared = shared_weights(roots.values())
        reasons = [obstacle(target, shared) for target in self._targets]
        odd = [f"{x} ({why})" for x, why in zip(self._layers, reasons, strict=True) if why]
        if mode == "fused" and odd:
            raise AttachError(
                f"layers that cannot be changed in place: {listed(odd, 3)}",
                where=str(self._bundle.path),
                advice="Use the mode auto or hooks, which leave such weights alone",
            )
        return reasons

    def _check_adapters(self) -> None:
        """Refuse DoRA beside a branch: it scales by the norm of a weight that lacks the branch.

        Raises:
            AttachError: There is one.
        """
        pairs = zip(self._layers, self._targets, self._reasons, strict=True)
        if odd := [str(layer) for layer, target, why in pairs if why and target.dora]:
            raise AttachError(
                f"layers have a DoRA adapter, which needs fused weights: {listed(odd, 3)}",
                where=str(self._bundle.path),
                advice="Delete that adapter, or use the mode fused with weights that allow it",
            )

    def _hold(self, roots: Mapping[str, nn.Module]) -> None:
        """Mark the components as taken.

        Raises:
            AttachError: Another replay holds one.
        """
        for name, root in roots.items():
            if _MARK in vars(root):
                raise AttachError(
                    f"a bundle is attached to this {name} already",
                    where=str(self._bundle.path),
                    advice="Detach that one first",
                )
            setattr(root, _MARK, True)
            self._roots[name] = root

    def _patch(self, index: int, keep: Keep, otherwise: torch.dtype) -> None:
        layer, target = self._layers[index], self._targets[index]
        read = partial(self._bundle.factors, layer)
        if self._reasons[index]:
            dtype = compute_dtype(target.module, otherwise)
            self._patches.append(Hooked(target, read, self._rank(layer), dtype))
        else:
            self._patches.append(Fused(target, read, keep))
        self._modes.append(self._patches[-1].mode)
        if isinstance(layer.rule, Constant):  # acts before the first call of a denoiser too
            self._patches[-1].set(self._gates(index, Fraction(0)))

    def _rank(self, layer: Layer) -> int:
        """Rank of a branch: what can be live at once, of any layer that selects.

        So that the blocks of a denoiser are alike, and share their graphs when each is compiled.
        """
        peers = [x for x in self._layers if x.component == layer.component]
        common = (max(x.ranks) for x in peers if not isinstance(x.rule, Constant))
        own = (sum if isinstance(layer.rule, Constant) else max)(layer.ranks)
        return max(own, *common, 0)

    def _watch(self, name: str) -> None:
        """Guard a component; on a denoiser also set a clock going."""
        indices = [i for i, layer in enumerate(self._layers) if layer.component == name]
        self._guards.append(Guard(self._targets[i] for i in indices if not self._reasons[i]))
        if name in DENOISERS and indices:
            root = self._roots[name]
            self._ticks[name] = Tick(
                getattr(self._pipe, name),
                Clock(root, partial(scheduler_for, self._pipe, root)),
                [self._patches[i] for i in indices],
                lru_cache(maxsize=4096)(partial(self._column, indices)),
                # A layer that can be bypassed, if there is one, stands for all.
                partial(self._state, max(indices, key=lambda i: self._targets[i].is_projection)),
                partial(self._follow, indices),
                self._seen.setdefault(name, set()),
            )

    def _state(self, index: int) -> tuple[object, ...]:
        """Of a layer: what tells that its denoiser was moved, packed, offloaded or rewired."""
        target = self._targets[index]
        weight = target.module.weight
        hooked = ["_diffusers_hook" in vars(module) for module in target.around()]
        kind = type(weight), type(weight.data)
        return weight.dtype, weight.is_meta, kind, hooked, target.bypassed(), target.replaced

    def _follow(self, indices: Sequence[int]) -> None:
        """Follow a denoiser whose weights have changed their dtype.

        Raises:
            AttachError: It has changed in a way that cannot be followed.
        """
        for i in indices:
            patch, target = self._patches[i], self._targets[i]
            if target.replaced:
                why = "another layer in its place"
            elif target.bypassed():
                why = "a weight that fuse_qkv_projections bypasses"
            else:
                why = obstacle(target) if isinstance(patch, Fused) else ""
            if why:
                raise AttachError(
                    f"the pipeline was changed while a bundle was attached: {self._layers[i]} has "
                    f"now {why}",
                    advice="Undo that or detach the bundle, and attach it again after the change",
                )
            patch.refit(compute_dtype(target.module, torch.float32))

    def _gates(self, index: int, progress: Fraction) -> Gates:
        """Plan times strengths: a layer's gates at this progress."""
        planned = gates(self._layers[index].rule, self._scale, progress)
        return tuple(g * s for g, s in zip(planned, self._strengths, strict=True))

    def _column(self, indices: Sequence[int], progress: Fraction) -> Column:
        """The gates of these layers, the same object whenever they are the same."""
        made = tuple(self._gates(i, progress) for i in indices)
        return self._columns.setdefault(made, made)


@torch.inference_mode(False)
def attach(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - anything may be a pipeline
    mode: Mode,
    keep: Keep,
    strengths: Mapping[str, float],
    overrides: Mapping[str, object],
) -> Replay:
    """Attach a bundle to a pipeline; see `Bundle.attach`, which is the public form."""
    chosen("mode", mode, get_args(Mode))
    chosen("keep", keep, get_args(Keep))
    scale = scale_with(bundle.manifest, overrides)
    replay = Replay(bundle, pipe, scale, tuple(strength(n, strengths[n]) for n in STRENGTHS))
    try:
        replay.start(mode, keep)
    except BaseException:
        replay.detach()
        raise
    return replay
