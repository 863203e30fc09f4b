"""Replay: a bundle's plan, applied to a pipeline for as long as it is attached."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Self, get_args

import torch
from torch import nn

from .ballot import Ballot
from .bundle import Bundle
from .caller import scheduler_for, uncompiled
from .changes import follow, state
from .clock import Clock
from .compiled import forget_graphs
from .conditional import Conditional, conditional
from .errors import AttachError, OverrideError, listed
from .fit import components, denoisers, fit
from .fused import Fused, Keep
from .guard import Guard
from .guide import Guide
from .hooked import Hooked
from .live import Voter
from .manifest import DENOISERS
from .modes import Mode, branch_ranks, reasons
from .overrides import STRENGTHS, Settings, chosen, settings, strength
from .part import Part
from .patch import Gates, Patch
from .plan import Constant, Live, gates
from .report import Report, summary
from .seeing import Seeing
from .target import Target
from .tick import Column, Tick
from .weights import compute_dtype

# On a component for as long as a replay holds it, where another copy of this package sees it too.
_MARK = "_lorabake_replay"


class Replay:
    """An attached bundle: a context manager that detaches at its end. `Bundle.attach` makes it."""

    def __init__(self, bundle: Bundle, pipe: Any, settings: Settings, strengths: Gates) -> None:  # noqa: ANN401 - anything may be a pipeline
        self._bundle, self._pipe = bundle, pipe
        self._settings, self._strengths = settings, strengths
        self._layers = bundle.manifest.layers
        self._roots: dict[str, nn.Module] = {}
        self._targets: list[Target] = []
        self._patches: list[Patch] = []
        self._ticks: list[Tick] = []
        self._guards: list[Guard] = []
        self._clocks: dict[str, Clock] = {}
        self._ballots: dict[str, Ballot] = {}
        self._guide: Guide | None = None
        self._conditional: Conditional | None = None
        self._note = ""
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
        if self._guide is not None:
            self._guide.remove()
        for hook in (*self._ticks, *self._guards, *self._ballots.values()):
            hook.remove()
        if self._conditional is not None:
            self._conditional.remove()
        hooked = self._hooked
        while self._patches:
            self._patches.pop().remove()
        if hooked:
            forget_graphs(self._pipe, self._roots)
        while self._roots:
            delattr(self._roots.popitem()[1], _MARK)
        # What is kept of base and LoRAs goes now, and not with the report.
        for held in (self._ticks, self._guards, self._targets, self._columns, self._clocks):
            held.clear()
        self._pipe = self._conditional = None
        if lost:
            warnings.warn(
                f"while a bundle was attached, {listed(sorted(lost))}; "
                "load the model and its LoRAs again",
                stacklevel=3,
            )

    def report(self) -> Report:
        """What was applied where, up to now."""
        progress = sorted(set[Fraction]().union(*self._seen.values()))
        decided = {name: ballot.decisions(progress) for name, ballot in self._ballots.items()}
        return {
            "bundle": str(self._bundle.path),
            "method": self._bundle.manifest.method,
            "half": self._settings.half,
            "note": self._note,
            "pipeline": self._name,
            "progress": [float(p) for p in progress],
            "memory": {
                "loras": sum(x.nbytes for patch in self._patches for x in patch.tensors()),
                "kept": sum(x.nbytes for patch in self._patches for x in patch.kept()),
            },
            "guidance": self._guide.report() if self._guide else [],
            "layers": [
                {
                    "component": layer.component,
                    "module": layer.module,
                    "mode": self._modes[i],
                    "why": self._reasons[i],
                    "gates": [self._applied(i, p) for p in progress],
                    "decisions": decided[layer.component][str(layer)]
                    if isinstance(layer.rule, Live)
                    else [],
                }
                for i, layer in enumerate(self._layers)
            ],
        }

    def _applied(self, index: int, progress: Fraction) -> list[float] | None:
        """A layer's gates at a progress, where they are known and it was seen."""
        layer = self._layers[index]
        seen = self._seen.get(layer.component)
        if isinstance(layer.rule, Live) or (seen is not None and progress not in seen):
            return None
        return list(self._gates(index, progress))

    @property
    def _hooked(self) -> bool:
        return any(isinstance(patch, Hooked) for patch in self._patches)

    def start(self, mode: Mode, keep: Keep, seeing: Seeing) -> None:
        """Check that the bundle fits, then patch the layers and set the clocks going."""
        roots = components(self._bundle, self._pipe)
        self._targets = fit(self._bundle, self._pipe, roots)
        if self._settings.half == "conditional":
            self._conditional = conditional(self._bundle, self._pipe, roots, self._tell)
        barred = self._conditional.barred(keep) if self._conditional else {}
        self._reasons = reasons(self._bundle, mode, self._targets, roots.values(), barred)
        self._bundle.check_finite()
        self._hold(roots)
        otherwise = {name: _dtype(root) for name, root in roots.items()}
        for name, root in roots.items():
            self._count(name, root)
        for i, rank in enumerate(branch_ranks(self._layers)):
            self._patch(i, keep, rank, otherwise[self._layers[i].component])
        for name in roots:
            self._watch(name)
        if self._conditional is not None:
            self._conditional.listen()
        if self._hooked:
            forget_graphs(self._pipe, roots)
        if self._settings.guidance is not None:
            self._guide = Guide(
                self._pipe,
                {name: uncompiled(getattr(self._pipe, name)) for name in denoisers(self._pipe)},
                self._settings.guidance, seeing.encoders, seeing.decoder, str(self._bundle.path),
                self._conditional.halves if self._conditional else {},
            )  # fmt: skip

    def _tell(self, note: str) -> None:
        """Say once why `conditional` changes nothing."""
        if not self._note:
            self._note = note
            warnings.warn(note, stacklevel=2)

    def _part(self, component: str) -> Part | None:
        """Of a component's samples those that its layers act on; None for all."""
        return self._conditional.parts[component] if self._conditional else None

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

    def _count(self, name: str, root: nn.Module) -> None:
        """Make a denoiser's clock, and its ballot if layers of it choose live."""
        layers = [layer for layer in self._layers if layer.component == name]
        if name not in DENOISERS or not layers:
            return
        self._clocks[name] = Clock(root, partial(scheduler_for, self._pipe, root))
        if live := [str(layer) for layer in layers if isinstance(layer.rule, Live)]:
            denoiser, clock = getattr(self._pipe, name), self._clocks[name]
            self._ballots[name] = Ballot(denoiser, clock, live, self._part(name))

    def _patch(self, index: int, keep: Keep, rank: int, otherwise: torch.dtype) -> None:
        layer, target = self._layers[index], self._targets[index]
        read = partial(self._bundle.factors, layer)
        dtype, part = compute_dtype(target.module, otherwise), self._part(layer.component)
        if isinstance(layer.rule, Live) and self._settings.selection is not None:
            ballot, how = self._ballots[layer.component], self._settings.selection
            self._patches.append(
                Voter(target, read, layer.ranks, dtype, how, ballot, str(layer), part)
            )
        elif self._reasons[index]:
            self._patches.append(Hooked(target, read, rank, dtype, part))
        else:
            self._patches.append(fused := Fused(target, read, keep))
            if part is not None:
                part.fused.append(fused)
        self._modes.append(self._patches[-1].mode)
        if isinstance(layer.rule, Constant | Live):  # acts before the first call of a denoiser too
            self._patches[-1].set(self._gates(index, Fraction(0)))

    def _watch(self, name: str) -> None:
        """Guard a component; on a denoiser also set a clock going."""
        indices = [i for i, layer in enumerate(self._layers) if layer.component == name]
        patches = [self._patches[i] for i in indices]
        self._guards.append(Guard(patch.target for patch in patches if isinstance(patch, Fused)))
        if name not in self._clocks:
            return
        # A layer that can be bypassed, if there is one, stands for all.
        sentinel = max((patch.target for patch in patches), key=lambda x: x.is_projection)
        self._ticks.append(
            Tick(
                getattr(self._pipe, name),
                self._clocks[name],
                patches,
                lru_cache(maxsize=4096)(partial(self._column, indices)),
                partial(state, sentinel),
                partial(self._follow, name, indices),
                self._seen.setdefault(name, set()),
                self._conditional.halves[name] if self._conditional else None,
            )
        )

    def _follow(self, name: str, indices: Sequence[int]) -> None:
        layers = [(str(self._layers[i]), self._patches[i]) for i in indices]
        follow(layers, _dtype(self._roots[name]))

    def _gates(self, index: int, progress: Fraction) -> Gates:
        """Plan times strengths: a layer's gates at this progress."""
        if isinstance(rule := self._layers[index].rule, Live):
            return self._strengths  # of whichever is chosen
        planned = gates(rule, self._settings.scale, progress)
        return tuple(g * s for g, s in zip(planned, self._strengths, strict=True))

    def _column(self, indices: Sequence[int], progress: Fraction) -> Column:
        """The gates of these layers, the same object whenever they are the same."""
        made = tuple(self._gates(i, progress) for i in indices)
        return self._columns.setdefault(made, made)


def _dtype(root: nn.Module) -> torch.dtype:
    """What a component computes in, where a weight does not tell."""
    return getattr(root, "dtype", torch.float32)


@torch.inference_mode(False)
def attach(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - anything may be a pipeline
    mode: Mode,
    keep: Keep,
    strengths: Mapping[str, float],
    overrides: Mapping[str, object],
    seeing: Seeing | None,
    half: object = None,
) -> Replay:
    """Attach a bundle to a pipeline; see `Bundle.attach`, which is the public form."""
    chosen("mode", mode, get_args(Mode))
    chosen("keep", keep, get_args(Keep))
    values = settings(bundle.manifest, overrides, half, guided=seeing is not None)
    if values.guidance is None and seeing is not None and seeing.given:
        raise OverrideError(
            f"a bundle of the method {bundle.manifest.method} has no references to guide by",
            where="encoders or decoder",
            advice="Leave them away",
        )
    replay = Replay(bundle, pipe, values, tuple(strength(n, strengths[n]) for n in STRENGTHS))
    try:
        replay.start(mode, keep, seeing or Seeing())
    except BaseException:
        replay.detach()
        raise
    return replay
