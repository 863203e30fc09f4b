"""ZipLoRA (arXiv 2311.13600): one trained coefficient per input column and LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..lora.pairs import Pair
from ..training import checkpoint
from ..training.coefficients import Coefficients
from ..training.loop import DivergedError, Schedule, State, train
from ..training.objective import Loss, Norm, Similarity
from ..training.scene import Scene, prepare
from .method import Context, Fused
from .trained import TrainedParams, TrainingError, base_for, enough_memory, fused
from .values import not_negative, one_of, positive, store, whole

_EVERY = 10
"""Updates between two checkpoints."""
_FREE = ("updates", "lambda_", "lr")
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
        norm: `paper`: Euclidean norm of the difference of predictions; `mse`: mean of its squares.
    """

    updates: int = 100
    lambda_: float = 0.01
    lr: float = 0.005
    similarity: Similarity = "paper"
    norm: Norm = "paper"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        super().__post_init__()
        store(
            self,
            updates=whole("updates", self.updates, 0, 100_000),
            lambda_=not_negative("lambda", self.lambda_),
            lr=positive("lr", self.lr),
            similarity=one_of("similarity", self.similarity, ("paper", "cosine", "mean")),
            norm=one_of("norm", self.norm, ("paper", "mse")),
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
        wanted, base = params.wanted(self.name), base_for(self.name, pairs, context)
        identity = _identity(params, context)
        with enough_memory(params):
            before = _resumed(pairs, identity, context)
            scene = prepare(pairs, base, wanted, context.device, context.tell, before and before[0])
            state = before[1] if before else State.new(sum(scene.widths))
            _train(scene, params, identity, state, context)
        return fused(pairs, scene, state.flat, _figures(state))


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
    pairs: Sequence[Pair], identity: dict[str, object], context: Context
) -> tuple[checkpoint.References, State] | None:
    if not context.resume or context.checkpoint is None:
        return None
    widths = [pair.content.shape[1] for pair in pairs if pair.contested and pair.content]
    return checkpoint.load(context.checkpoint, identity, sum(widths))


def _train(
    scene: Scene, params: Params, identity: dict[str, object], state: State, context: Context
) -> None:
    """Train, and leave a checkpoint every few updates and whenever training ends early."""

    def save() -> None:
        if context.checkpoint is not None:
            checkpoint.save(context.checkpoint, identity, scene.problem.references, state)

    def done(state: State) -> None:
        count, loss = len(state.history), state.history[-1]
        context.detail(
            f"content {loss.content:.3g} style {loss.style:.3g} similarity {loss.similarity:.3g}"
        )
        context.tell("training", count, params.updates)
        if count % _EVERY == 0:
            save()

    coefficients = Coefficients(scene.widths, scene.device)
    for name, columns in zip(scene.names, coefficients.layers, strict=True):
        scene.problem.branches.branches[name].columns = columns
    schedule = Schedule(
        params.updates, params.lr, params.lambda_, params.similarity, params.seed
    )  # fmt: skip
    save()
    try:
        train(scene.problem, coefficients, schedule, state, done)
    except DivergedError as error:
        save()
        kept = f" and are kept in {context.checkpoint}" if context.checkpoint else ""
        raise TrainingError(
            f"{error}; the coefficients of update {error.update - 1} were the last good ones"
            f"{kept}. Go on from there with --resume and a lower --lr than {params.lr:g}, or bake "
            f"them as they are with --resume --updates {error.update - 1}."
        ) from error
    except KeyboardInterrupt:
        save()
        raise


METHOD = ZipLora()
