"""Replay: a bundle's plan, applied to a pipeline for as long as it is attached."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Self, TypedDict, get_args

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .bundle import Bundle
from .clock import Clock
from .errors import AttachError, listed
from .fit import components, compute_dtype, fit, plain, shared_weights
from .overrides import STRENGTHS, chosen, scale_with, strength
from .patch import Fused, Gates, Hooked, Patchable
from .plan import Constant, Scale, gates

Mode = Literal["auto", "fused", "hooks"]

# On a component for as long as a replay holds it, where another copy of this package sees it too.
_MARK = "_lorabake_replay"


class Applied(TypedDict):
    """One layer of a report; `gates` has (content, style) factors for each of its progresses."""

    component: str
    module: str
    mode: str
    gates: list[list[float]]


class Report(TypedDict):
    """What was applied where, as JSON; `progress` is ascending."""

    bundle: str
    method: str
    pipeline: str
    progress: list[float]
    layers: list[Applied]


class Replay:
    """An attached bundle: a context manager that detaches at its end. `Bundle.attach` makes it."""

    def __init__(self, bundle: Bundle, pipe: Any, scale: Scale | None, strengths: Gates) -> None:  # noqa: ANN401 - anything may be a pipeline
        self._bundle, self._pipe = bundle, pipe
        self._scale, self._strengths = scale, strengths
        self._held: list[nn.Module] = []
        self._patches: list[Fused | Hooked] = []
        self._modes: list[str] = []
        self._current: list[Gates | None] = []
        self._clock: RemovableHandle | None = None
        self._seen: set[Fraction] = set()
        self._gates_at = lru_cache(maxsize=4096)(self._product)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Put every weight back bit for bit and take every hook off; a second time does nothing."""
        if self._clock is not None:
            self._clock.remove()
            self._clock = None
        while self._patches:
            self._patches.pop().remove()
        while self._held:
            delattr(self._held.pop(), _MARK)

    def report(self) -> Report:
        """What was applied where, up to now."""
        progress = sorted(self._seen)
        columns = [self._gates_at(p) for p in progress]
        return {
            "bundle": str(self._bundle.path),
            "method": self._bundle.manifest.method,
            "pipeline": type(self._pipe).__name__,
            "progress": [float(p) for p in progress],
            "layers": [
                {
                    "component": layer.component,
                    "module": layer.module,
                    "mode": mode,
                    "gates": [list(column[i]) for column in columns],
                }
                for i, (layer, mode) in enumerate(
                    zip(self._bundle.manifest.layers, self._modes, strict=True)
                )
            ],
        }

    def start(self, mode: Mode) -> None:
        """Check that the bundle fits, then patch the layers and set the clock going."""
        roots = components(self._bundle, self._pipe)
        modules = fit(self._bundle, self._pipe, roots)
        self._bundle.check_finite()
        self._hold(roots)
        denoiser = next(iter(roots))
        clock = Clock(roots[denoiser], lambda: self._pipe.scheduler)
        self._patch(mode, modules, roots)
        # What is applied all the time also acts before the first call of the denoiser.
        for i, layer in enumerate(self._bundle.manifest.layers):
            if isinstance(layer.rule, Constant):
                self._apply(i, self._gates_at(Fraction(0))[i])

        @torch.inference_mode(False)
        def tick(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            progress = clock.progress(args, kwargs)
            self._seen.add(progress)
            for i, wanted in enumerate(self._gates_at(progress)):
                self._apply(i, wanted)

        # On what the pipeline calls, which may be a torch.compile wrapper of the denoiser.
        self._clock = getattr(self._pipe, denoiser).register_forward_pre_hook(
            tick, prepend=True, with_kwargs=True
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
            self._held.append(root)

    def _patch(self, mode: Mode, modules: list[Patchable], roots: Mapping[str, nn.Module]) -> None:
        layers = self._bundle.manifest.layers
        shared = frozenset[int]().union(*map(shared_weights, roots.values()))
        dense = [plain(module, shared) for module in modules]
        if mode == "fused" and not all(dense):
            odd = [str(layer) for layer, fits in zip(layers, dense, strict=True) if not fits]
            raise AttachError(
                f"weights that cannot be changed in place: {listed(odd)}",
                where=str(self._bundle.path),
                advice="They are quantised, shared or offloaded; use the mode auto or hooks",
            )
        for layer, module, fusable in zip(layers, modules, dense, strict=True):
            device = "cpu" if module.weight.device.type == "meta" else module.weight.device
            factors = [self._bundle.factors(layer, i, device) for i in range(len(layer.ranks))]
            if fusable and mode != "hooks":
                self._patches.append(Fused(module, factors))
            else:
                rank = (sum if isinstance(layer.rule, Constant) else max)(layer.ranks)
                dtype = compute_dtype(module, roots[layer.component])
                self._patches.append(Hooked(module, factors, rank, dtype))
        self._modes = [patch.mode for patch in self._patches]
        self._current = [None] * len(self._patches)

    def _apply(self, index: int, wanted: Gates) -> None:
        if self._current[index] != wanted:
            self._current[index] = None  # unknown, should the next line fail half-way
            self._patches[index].apply(wanted)
            self._current[index] = wanted

    def _product(self, progress: Fraction) -> tuple[Gates, ...]:
        """Plan times strengths: the gates of every layer at this progress."""
        return tuple(
            tuple(
                gate * strength
                for gate, strength in zip(
                    gates(layer.rule, self._scale, progress), self._strengths, strict=True
                )
            )
            for layer in self._bundle.manifest.layers
        )


@torch.inference_mode(False)
def attach(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - anything may be a pipeline
    mode: Mode,
    strengths: Mapping[str, float],
    overrides: Mapping[str, object],
) -> Replay:
    """Attach a bundle to a pipeline; see `Bundle.attach`, which is the public form."""
    chosen("mode", mode, get_args(Mode))
    scale = scale_with(bundle.manifest, overrides)
    replay = Replay(bundle, pipe, scale, tuple(strength(n, strengths[n]) for n in STRENGTHS))
    try:
        replay.start(mode)
    except BaseException:
        replay.detach()
        raise
    return replay
