"""ZipLoRA (arXiv 2311.13600): one trained coefficient per input column and LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import OutputError, RecipeError, TrainingError
from ..lora.pairs import Pair
from ..training import checkpoint
from ..training.loop import DivergedError, Schedule, State, train
from ..training.objective import Loss, Norm, Similarity
from ..training.problem import References
from ..training.scene import Scene, prepare
from .method import Context, Fused
from .trained import TrainedParams, base_for, enough_memory, fused
from .values import flag, not_negative, one_of, positive, store, whole

_EVERY = 10
"""Updates between two checkpoints."""
_FREE = ("updates", "lambda_", "lr", "precision", "gradient_checkpointing", "batch")
"""What may be changed when a training is resumed."""


@dataclass(frozen=True)
class Params(TrainedParams):
    """Of the paper where it gives them; similarity terms and lambda: see docs/ziplora.md.

    Attributes:
        updates: Gradient steps, fewer if the similarity term vanishes.
        lambda_: Factor on the similarity term (`lambda` in presets and on the command line).
        lr: Adam's learning rate; the paper gives none.
        similarity: `paper`: Σ_l |m_c·m_s|; `mean`: Σ_l mean |m_c·m_s|; `cosine`: mean over the
            layers of |cos(m_c, m_s)|.
        gradient_checkpointing: Compute activations twice instead of keeping them: less memory, a
            third more time.
        norm: `paper`: Euclidean norm of the difference of predictions; `mse`: mean of its squares.
    """

    updates: int = 100
    lambda_: float = 0.01
    lr: float = 0.005
    similarity: Similarity = "paper"
    norm: Norm = "paper"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        super().__post_init__()
        store(
            self,
            updates=whole("updates", self.updates, 0, 10_000),
            lambda_=not_negative("lambda", self.lambda_),
            lr=positive("lr", self.lr),
            similarity=one_of("similarity", self.similarity, ("paper", "cosine", "mean")),
            norm=one_of("norm", self.norm, ("paper", "mse")),
            gradient_checkpointing=flag("gradient_checkpointing", self.gradient_checkpointing),
        )


class ZipLora:
    """Coefficients start from 1, the direct merge, and are trained on the base model."""

    name = "ziplora"
    summary = "both everywhere, each input column times a trained coefficient"
    params = Params

    def fuse(self, pairs: Sequence[Pair], params: Params, context: Context) -> Fused:
        """Train the coefficients of the denoiser's layers that both LoRAs have.

        Raises:
            UserError: A prompt, the base model or an image is missing or does not fit.
            TrainingError: A loss became NaN or infinite.
            MemoryLackError: The device's memory does not suffice.
        """
        base = base_for(self.name, pairs, context)
        wanted = replace(
            params.wanted(self.name),
            norm=params.norm,
            gradient_checkpointing=params.gradient_checkpointing,
        )
        identity = _identity(params, context)
        before = _resumed(pairs, params, identity, context)
        savings = [] if params.gradient_checkpointing else ["gradient_checkpointing=true"]
        with enough_memory([*savings, *params.savings(context.device)]):
            scene = prepare(pairs, base, wanted, context.device, context.tell, before and before[0])
            state = before[1] if before else State.new(sum(scene.widths))
            state = _train(scene, params, identity, state, context)
        found = fused(pairs, scene, state.flat, _figures(state), "raise --lr or --updates")
        if context.resume and before is None:
            found = replace(found, warnings=(*found.warnings, "there was nothing to resume"))
        return replace(found, checkpoint=context.checkpoint)


def _identity(params: Params, context: Context) -> dict[str, object]:
    """What a training depends on, but for what may be changed when it is resumed."""
    values = {name: value for name, value in asdict(params).items() if name not in _FREE}
    return {**context.identity, **values}


def _figures(state: State) -> dict[str, float]:
    """Updates done, and each part of the loss at the beginning and at the end.

    Timesteps and noise differ from one update to the next, so these are means over a tenth.
    """
    count = len(state.history)
    some = max(1, count // 10)
    found = {"updates": float(count)}
    for part in Loss._fields if count else ():
        values = [getattr(loss, part) for loss in state.history]
        found[f"{part}_before"] = sum(values[:some]) / some
        found[f"{part}_after"] = sum(values[-some:]) / some
    return found


def _resumed(
    pairs: Sequence[Pair], params: Params, identity: dict[str, object], context: Context
) -> tuple[References, State] | None:
    """The references and the state of an interrupted training, if it is to go on."""
    if context.checkpoint is None:
        return None
    checkpoint.claim(context.checkpoint, resume=context.resume, force=context.force)
    if not context.resume:
        return None
    widths = [pair.content.shape[1] for pair in pairs if pair.contested and pair.content]
    found = checkpoint.load(context.checkpoint, identity, sum(widths))
    if found and (count := len(found[1].history)) > params.updates:
        raise RecipeError(
            f"{count} are done already, {params.updates} are too few",
            where="updates",
            advice=f"Give at least {count}, or start again without --resume",
        )
    return found


def _train(
    scene: Scene, params: Params, identity: dict[str, object], state: State, context: Context
) -> State:
    """Train, and leave a checkpoint every few updates and whenever training ends early."""
    latest = state

    def save(state: State) -> bool:
        if context.checkpoint is None:
            return False
        try:
            checkpoint.save(context.checkpoint, identity, scene.problem.references, state)
        except OutputError:  # no reason to lose what is in memory
            return False
        return True

    def done(state: State) -> None:
        nonlocal latest
        latest = state
        count, loss = len(state.history), state.history[-1]
        context.detail(
            f"content {loss.content:.3g} style {loss.style:.3g} similarity {loss.similarity:.3g}"
        )
        context.tell("training", count, params.updates)
        if count % _EVERY == 0:
            save(state)

    schedule = Schedule(params.updates, params.lr, params.lambda_, params.similarity, params.seed)
    save(state)
    try:
        return train(scene.problem, scene.coefficients(), schedule, state, done)
    except DivergedError as error:
        kept = context.checkpoint if save(error.good) else None
        raise TrainingError(_advice(error, params, kept)) from error
    except BaseException:
        save(latest)
        raise


def _advice(error: DivergedError, params: Params, kept: Path | None) -> str:
    if error.update == 1:
        return f"{error}, before anything was trained. Try --set precision=float32."
    count = len(error.good.history)
    good = f"{error}; the coefficients after update {count} were the last good ones"
    if kept is None:
        return f"{good}. Start again with a lower --lr than {params.lr:g}."
    return (
        f"{good}, they are kept in {kept}. Go on from there with --resume and a lower --lr than "
        f"{params.lr:g}, or bake them as they are with --resume --updates {count}."
    )


METHOD = ZipLora()
