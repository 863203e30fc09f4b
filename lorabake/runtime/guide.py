"""Latent-level refinement at replay: every step is followed by one down the gradient of R."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .caller import scheduler_for
from .clock import Clock
from .decoder import Decoder
from .errors import AttachError
from .frozen import Frozen
from .guidable import check, check_encoders, check_scheduler, through
from .guidance import Guidance
from .halves import Halves
from .patch import Uncopyable
from .predicted import original, spread
from .refinement import gradient, look
from .report import Refined
from .score import Encoder, score
from .solver import carry, probes
from .step import Step
from .tape import Tape, leading


class Guide(Uncopyable):
    """x_(t−1) ← x_(t−1) − m·∇R(x̂_0(x_t)) after the steps of a pipeline (arXiv 2602.15539).

    The gradient is with respect to the latents x_t before the step, of each sample for itself; what
    else a denoiser is given, such as the residuals of a ControlNet, is constant. For schedulers
    that keep latents √(1 + σ²) times as large (Euler and its like) both are those of latents of
    variance 1, as in the paper: else m would mean another thing for each of them. Steps of a solver
    that only look ahead (the first of PNDM, every other of Heun) are not refined: the next one
    starts from an earlier sample.

    Args:
        pipe: A pipeline of diffusers.
        denoisers: Its denoisers, by name, out of any torch.compile wrapper.
        guidance: What the bundle says.
        encoders: By the names `clip` and `dino`.
        decoder: In the place of the pipeline's VAE, see `Decoder`.
        where: The bundle, for messages.
        halves: By denoiser, what is conditional in the call of the moment, where that matters.

    Raises:
        AttachError: Something is missing, or does not fit; nothing has been touched then.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - any pipeline
        denoisers: Mapping[str, nn.Module],
        guidance: Guidance,
        encoders: Mapping[str, Encoder],
        decoder: Any | None,  # noqa: ANN401 - any VAE
        where: str,
        halves: Mapping[str, Halves] | None = None,
    ) -> None:
        self._halves = dict(halves or {})
        self._pipe, self._guidance, self._where = pipe, guidance, where
        self._encoders, self._through = encoders, through(guidance)
        self._seen: list[Refined] = []
        self._steps: list[Step] = []
        self._handles: list[Any] = []
        self._tape = Tape()
        self._ids: Tensor | None = None
        self._turn: tuple[Any, Fraction] | None = None
        self._moment: tuple[Any, Fraction] = (None, Fraction(0))
        self._decoder: Decoder | None = Decoder(pipe, decoder, where)
        clocks = {
            name: Clock(root, partial(scheduler_for, pipe, root))
            for name, root in denoisers.items()
        }
        check_encoders(encoders, guidance, where)
        parts = (self._decoder.vae, *encoders.values(), *denoisers.values())
        models = [part for part in parts if isinstance(part, nn.Module)]
        check(pipe.scheduler, guidance, encoders, models, where)
        passed = models if self._through else [x for x in models if x not in denoisers.values()]
        self._frozen = Frozen(passed if guidance.m else ())
        try:
            for name, root in denoisers.items():
                self._listen(name, root, clocks[name])
            self._wrap(pipe.scheduler)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Leave pipeline, schedulers and models as they were; a second time does nothing."""
        while self._handles:
            self._handles.pop().remove()
        while self._steps:
            self._steps.pop().remove()
        self._frozen.remove()
        self._tape.clear()
        self._turn = self._ids = None
        self._moment = (None, Fraction(0))
        # The report stays, the models need not.
        self._pipe, self._encoders, self._decoder, self._halves = None, {}, None, {}

    def report(self) -> list[Refined]:
        """The refined steps up to now, in their order."""
        return list(self._seen)

    def _listen(self, name: str, root: nn.Module, clock: Clock) -> None:
        denoiser = getattr(self._pipe, name)
        before: Any = partial(self._before, root, clock)  # pyright: ignore[reportAttributeAccessIssue] - the decorator is typed loosely
        after: Any = partial(self._after, self._halves.get(name))  # pyright: ignore[reportAttributeAccessIssue] - likewise
        self._handles.append(denoiser.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(denoiser.register_forward_hook(after, always_call=True))

    def _wrap(self, scheduler: Any) -> None:  # noqa: ANN401 - any scheduler
        """Be called at the steps of a scheduler, which may be new to this pipeline."""
        if not any(step.stands(scheduler) for step in self._steps):
            check_scheduler(scheduler, self._guidance, self._where)
            self._steps.append(Step(scheduler, self._step))

    @torch.compiler.disable
    def _before(
        self,
        root: nn.Module,
        clock: Clock,
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - arguments of a denoiser, or None for the same
        """Before a call of a denoiser: whether the step that it is for will be refined."""
        scheduler = scheduler_for(self._pipe, root)
        self._wrap(scheduler)
        progress = clock.progress(args, kwargs)
        moment = (scheduler.timesteps, progress)
        if self._moment[0] is not moment[0] or self._moment[1] != progress:
            self._tape.clear()  # of a run that was broken off
        self._moment = moment
        self._turn = None
        if probes(scheduler) or self._position(scheduler, progress) % self._guidance.every:
            return None
        self._turn = (scheduler, progress)
        self._ids = kwargs.get("img_ids")
        return self._tape.open(root, args, kwargs) if self._through else None

    @torch.compiler.disable
    def _after(self, halves: Halves | None, _: nn.Module, __: tuple[Any, ...], result: Any) -> Any:  # noqa: ANN401 - a denoiser's
        return self._tape.close(result, *([] if halves is None else [halves.resumed()]))

    def _step(
        self,
        scheduler: Any,  # noqa: ANN401 - any scheduler
        step: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - what its step returns
        turn = self._turn
        # A run that was broken off may have left its turn; every run sets a schedule of its own.
        if turn is None or turn[0] is not scheduler or self._moment[0] is not scheduler.timesteps:
            return step(*args, **kwargs)
        self._turn = None
        given = inspect.signature(step).bind(*args, **kwargs).arguments
        try:
            change = self._refine(scheduler, given, turn[1])
        finally:
            self._tape.clear()
        result = step(*args, **kwargs)
        if change is None:
            return result
        change = change * spread(scheduler)
        carry(scheduler, change)
        return _moved(result, change)

    def _refine(
        self,
        scheduler: Any,  # noqa: ANN401 - any scheduler
        given: Mapping[str, Any],
        progress: Fraction,
    ) -> Tensor | None:
        """m·∇R, to be taken off latents of variance 1; None if they are to be left alone."""
        sample, output, decoder = given["sample"], given["model_output"], self._decoder
        if decoder is None:
            return None
        if output.shape[0] != sample.shape[0] or given.get("per_token_timesteps") is not None:
            raise AttachError(
                f"the scheduler steps from latents of shape {list(sample.shape)} with a model "
                f"output of shape {list(output.shape)}, each token or sample at a time of its own",
                where=self._where,
                advice="Attach with guidance=False",
            )
        m, pull = self._guidance.m, self._tape.pull if self._through else None
        output = leading(output, sample)  # a denoiser may predict a variance beside

        def scored(x: Tensor, out: Tensor) -> Tensor:
            clean = original(scheduler, given["timestep"], x, out)
            return score(decoder.images(clean, self._ids), self._guidance, self._encoders)

        # What is copied in there must be fit for a gradient, whatever the pipeline runs in.
        with torch.inference_mode(False), decoder.precise():
            if m == 0:
                scores = look(sample, output, scored)
                found = torch.zeros(())
            else:
                scores, found = gradient(sample, output, scored, pull)
        if not (scores.isfinite().all() and found.isfinite().all()):
            what = "the gradient of the guidance" if scores.isfinite().all() else "R"
            raise AttachError(
                f"{what} is NaN or infinite at progress {float(progress):g}",
                where=self._where,
                advice="Use the VAE in float32 or bfloat16, another decoder=, "
                'through="latents", a smaller m, or guidance=False',
            )
        if m == 0:
            self._note(progress, scores)
            return None
        found = found * spread(scheduler)
        self._note(progress, scores, found.flatten(1).norm(dim=1))
        return m * found

    def _note(self, progress: Fraction, scores: Tensor, norms: Tensor | None = None) -> None:
        self._seen.append(
            {
                "progress": float(progress),
                "score": scores.tolist(),
                "gradient": [] if norms is None else norms.tolist(),
            }
        )

    @staticmethod
    def _position(scheduler: Any, progress: Fraction) -> int:  # noqa: ANN401 - any scheduler
        """How many different timesteps come before; solvers of order 2 have some twice."""
        timesteps = scheduler.timesteps
        return len(torch.as_tensor(timesteps)[: int(progress * len(timesteps))].unique())


def _moved(result: Any, change: Tensor) -> Any:  # noqa: ANN401 - what a scheduler's step returns
    """The result with its new latents moved, in their dtype."""
    latents: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    wide = torch.promote_types(latents.dtype, change.dtype)
    moved = (latents.to(wide) - change.to(wide)).to(latents.dtype)
    if isinstance(result, tuple):
        return (moved, *result[1:])
    result.prev_sample = moved
    return result
