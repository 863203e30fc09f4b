"""The benchmark measures what it says, fills its table, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from sys import platform

import pytest
import torch
from torch import nn

from lorabake.errors import AttachError, BaseModelError, OverrideError
from lorabake.pipelines.bench import Result, compare, markdown, measure, text
from lorabake.pipelines.bench.ways import WAYS, Way

from ..runtime import pipes
from .bench_case import Case, case_of, same

KEYS = ["base", "floor", "peft_one", "peft_two", "fused", "hooks", "recomputed"]
BY_KEY = {way.key: way for way in WAYS}

# Importing torch's compiler, and bitsandbytes on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def case(folder: Path) -> Case:
    return case_of(folder)


def measured(
    case: Case,
    draws: list[int] | None = None,
    *,
    steps: Sequence[int] = (2, 3),
    repeats: int = 2,
    ways: Sequence[Way] = WAYS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    def draw(count: int) -> str:
        case.draw(count)
        if draws is not None:
            draws.append(count)
        return "8 × 8"

    return compare(
        case.pipe, case.bundle, draw, steps=steps, repeats=repeats, ways=ways, progress=progress
    )


def test_a_comparison(case: Case) -> None:
    before = case.snapshot()
    calls: list[tuple[int, int]] = []
    result = measured(case, progress=lambda done, total: calls.append((done, total)))
    assert same(case.snapshot(), before)
    assert calls == [(i, 14) for i in range(1, 15)]
    assert [row.way for row in result.rows] == KEYS
    for row in result.rows:
        assert not row.reason
        assert row.step is not None
        assert 0 < row.step < row.image[2]
        assert (row.memory is None) == (platform != "linux")
        assert row.ratio.keys() == row.image.keys() == {2, 3}
        assert not row.extrapolated
        for count in (2, 3):
            assert row.ratio[count] == row.image[count] / result["floor"].image[count]
    layers = case.bundle.manifest.layers
    sizes = [torch.Size(case.bundle.shape(layer)) for layer in layers]
    assert result.kept == 4 * sum(size.numel() for size in sizes)
    ranks = [sum(layer.ranks) for layer in layers]
    assert (
        0
        < result.loras
        <= 4
        * sum(rank * (size[0] + size[1:].numel()) for rank, size in zip(ranks, sizes, strict=True))
    )
    found = json.loads(json.dumps(result.to_json()))
    assert [row["way"] for row in found["rows"]] == KEYS
    for page in (text(result), markdown(result)):
        assert all(way.label in page for way in WAYS)
        assert f"torch {torch.__version__}, diffusers" in page
        assert "UNet2DConditionModel, float32, 8 × 8, eager, medians of 2 rounds" in page
        assert "~" not in page
    table = [line.count("|") for line in markdown(result).splitlines() if line.startswith("|")]
    assert set(table) == {9 + 1}


def test_images_of_a_way_follow_a_whole_one(case: Case) -> None:
    """So that the time of an image has the switching back in it."""
    for key, rounds in (("fused", [2, 3, 3, 4]), ("floor", [2, 3, 4])):
        draws: list[int] = []
        measured(case, draws, steps=(3, 4), ways=[BY_KEY[key]])
        assert draws == [3, 2, *rounds, *rounds]


def test_slow_ways_are_extrapolated(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PATIENCE", 0.0)
    monkeypatch.setattr(measure, "_SLOW", 0)
    draws: list[int] = []
    result = measured(case, draws, steps=(10, 30), ways=[BY_KEY["recomputed"]], repeats=1)
    row = result["recomputed"]
    assert row.extrapolated
    assert row.step is not None
    assert row.image[30] - row.image[10] == pytest.approx(20 * row.step)
    assert row.image[10] > 10 * row.step
    assert draws == [10, 2, 2]
    assert "~" in text(result).splitlines()[1]
    assert text(result).endswith("~ computed from a few steps")


def test_compiled(case: Case) -> None:
    """Without a compiler: what is called is the wrapper, and it goes again."""
    unet, kinds = case.pipe.unet, list[str]()
    with torch.compiler.set_stance("force_eager"):

        def draw(steps: int) -> str:
            kinds.append(type(case.pipe.unet).__name__)
            case.draw(steps)
            return ""

        result = compare(case.pipe, case.bundle, draw, steps=(2,), repeats=2, compiled=True)
    assert kinds[0] == "UNet2DConditionModel"  # to see that the bundle fits, and its memory
    assert set(kinds[1:]) == {"OptimizedModule"}
    assert case.pipe.unet is unet
    assert not [row.reason for row in result.rows if row.reason]
    assert "compiled" in text(result)


def reasons(result: Result) -> dict[str, str]:
    assert all((row.step is None) == bool(row.reason) for row in result.rows)
    return {row.way: row.reason for row in result.rows if row.reason}


def test_a_base_whose_layers_share_a_weight(case: Case) -> None:
    attention = case.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q.weight = attention.to_k.weight
    before = case.snapshot()
    result = measured(case, steps=(2,), repeats=1)
    assert same(case.snapshot(), before)
    found = reasons(result)
    assert found.keys() == {"floor", "fused"}
    assert "share" in found["floor"]
    assert "cannot be changed in place" in found["fused"]
    for page in (text(result), markdown(result)):
        assert f"– {found['fused']}" in page
    assert all(row.ratio == {} for row in result.rows)


def test_a_quantised_base(case: Case) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    for module in list(case.pipe.unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name.startswith("to_"):
                quantised = bnb.nn.Linear8bitLt(
                    child.in_features, child.out_features,
                    "bias" in child.state_dict(), has_fp16_weights=False,
                )  # fmt: skip
                quantised.load_state_dict(child.state_dict())
                setattr(module, name, quantised.to("cpu"))
    found = reasons(measured(case, steps=(2,), repeats=1))
    assert {"floor", "fused"} <= found.keys()
    assert not found.keys() & {"base", "hooks", "recomputed"}
    assert "cannot be set by hand: unet." in found["floor"]


def test_a_bundle_of_another_method(folder: Path) -> None:
    found = reasons(measured(case_of(folder, "direct"), steps=(2,), repeats=1))
    assert found == {"recomputed": "the method of this bundle is direct, not klora"}


def test_what_is_refused(case: Case) -> None:
    for steps in ((), (3, 0)):
        with pytest.raises(OverrideError, match="steps: give whole numbers above 0"):
            measured(case, steps=steps)
    with pytest.raises(OverrideError, match="repeats: give whole numbers above 0"):
        measured(case, repeats=0)
    other = Case(pipes.sd(text_encoder=case.pipe.text_encoder), case.bundle, case.loras)
    with pytest.raises(AttachError, match="do not fit"):
        measured(other)


def test_a_way_that_fails_is_a_row_and_the_base_model_is_an_error(case: Case) -> None:
    layers = [m for name, m in case.pipe.unet.named_modules() if name.endswith("to_q")]

    def draw(steps: int) -> str:
        case.draw(steps)
        if any(module._forward_hooks for module in layers):
            raise BaseModelError("cannot\npaint")
        return ""

    ways = [BY_KEY["base"], BY_KEY["hooks"]]
    result = compare(case.pipe, case.bundle, draw, steps=(2,), repeats=2, ways=ways)
    assert reasons(result) == {"hooks": "cannot paint"}
    handle = layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(BaseModelError, match="cannot"):
        compare(case.pipe, case.bundle, draw, steps=(2,), repeats=2, ways=ways)
    handle.remove()
