"""Which LoRA is at work when: in text encoders, while references are painted, and afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorabake import pipelines
from lorabake.errors import BaseModelError
from lorabake.lora.pairs import Pair
from lorabake.lora.types import LayerName, LowRank
from lorabake.training import scene
from lorabake.training.branches import BOTH, CONTENT, STYLE, Branches

from .. import bases
from .stage import PROMPTS, random_pairs

CPU = torch.device("cpu")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """What is called with which prompt, and which LoRAs act then."""
    seen: list[tuple[str, str, Any]] = []
    found: list[Branches] = []
    remembered = Branches.__init__

    def remember(self: Branches, *args: Any) -> None:
        found.append(self)
        remembered(self, *args)

    def spy(name: str) -> None:
        original = getattr(scene, name)

        def call(pipe: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
            modes = {branch.mode for branch in found[0].branches.values()}
            assert len(modes) == 1
            seen.append((name, prompt, modes.pop()))
            return original(pipe, prompt, *args, **kwargs)

        monkeypatch.setattr(scene, name, call)

    monkeypatch.setattr(Branches, "__init__", remember)
    spy("record")
    spy("sample")
    return seen


def text_layer() -> Pair:
    dice = torch.Generator().manual_seed(0)
    sides = [
        LowRank(torch.randn(2, 24, generator=dice), torch.randn(24, 2, generator=dice))
        for _ in "cs"
    ]
    name = LayerName("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj")
    return Pair(name, sides[0], sides[1])


def prepare(monkeypatch: pytest.MonkeyPatch, *more: Pair, **wanted: Any) -> Any:
    pipe = bases.sd15()
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(pipelines, "load", lambda base, device, dtype: pipe)
    pairs = (*random_pairs("unet", pipe.unet), *more)
    given: dict[str, Any] = {"references": 1, "steps": 2, "resolution": 16, **wanted}
    return pipe, scene.prepare(
        pairs, "x", scene.Wanted(PROMPTS, **given), CPU, lambda stage, done, total: None
    )


def test_every_teacher_speaks_for_its_own_lora(
    monkeypatch: pytest.MonkeyPatch, seen: list[Any]
) -> None:
    _, found = prepare(monkeypatch, text_layer())
    content, style = PROMPTS
    assert seen == [
        ("record", content, ((CONTENT,), False)), ("record", content, ((BOTH,), False)),
        ("record", style, ((STYLE,), False)), ("record", style, ((BOTH,), False)),
        ("sample", content, ((CONTENT,), False)), ("sample", style, ((STYLE,), False)),
    ]  # fmt: skip
    calls = (found.problem._teachers[0], found.problem._students[0])  # pyright: ignore[reportPrivateUsage]
    told = [call.arguments["encoder_hidden_states"] for call in calls]
    assert not torch.allclose(told[0][0], told[1][0])
    assert not any(name.startswith("text_encoder") for name in found.problem.branches.branches)


def test_without_text_layers_both_are_told_the_same(
    monkeypatch: pytest.MonkeyPatch, seen: list[Any]
) -> None:
    pipe, found = prepare(monkeypatch)
    assert [name for name, *_ in seen] == ["record", "record", "sample", "sample"]
    assert found.problem.branches.branches
    assert not pipe.unet.is_gradient_checkpointing
    pipe, _ = prepare(monkeypatch, gradient_checkpointing=True)
    assert pipe.unet.is_gradient_checkpointing


def test_references_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = bases.sd15()
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    monkeypatch.setattr(bases, "sd15", lambda: pipe)
    with pytest.raises(BaseModelError, match="paints NaN"):
        prepare(monkeypatch)


def test_a_size_that_the_model_cannot_paint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match="Give 16"):
        prepare(monkeypatch, resolution=20)
