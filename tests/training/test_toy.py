"""On the toy world, with LoRAs that were really trained, training does what it is for."""

from __future__ import annotations

import pytest
import torch

from lorabake import lora
from lorabake.demo.showcase import HERE, STYLE, SUBJECT, own_prompts
from lorabake.training.loop import Schedule, State, train
from lorabake.training.objective import Similarity
from lorabake.training.scene import Scene, Wanted, prepare

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene() -> Scene:
    content, style = (HERE / "loras" / f"{name}.safetensors" for name in (SUBJECT, STYLE))
    pairs = lora.pair(*lora.read_both(content, style))
    wanted = Wanted(own_prompts(SUBJECT, STYLE), references=1, steps=4, guidance=3.0)
    return prepare(pairs, HERE / "model", wanted, CPU, lambda stage, done, total: None)


@pytest.mark.parametrize("term", ["paper", "mean", "cosine"])
def test_losses_and_similarity_go_down(term: Similarity, scene: Scene) -> None:
    schedule = Schedule(8, 0.005, 0.01, term, 0)
    start = State.new(sum(scene.widths))
    end = train(scene.problem, scene.coefficients(), schedule, start, lambda state: None)
    # Updates 4 to 7 see the noise of 0 to 3 once more.
    for first, second in zip(end.history[:4], end.history[4:], strict=True):
        assert second.content < first.content
        assert second.style < first.style
        assert second.similarity < first.similarity
