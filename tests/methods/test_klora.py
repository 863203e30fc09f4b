"""K-LoRA decides as the paper does: against dense float64 equations written here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch

from lorabake import recipe
from lorabake.errors import PairError
from lorabake.lora.pairs import Pair
from lorabake.lora.types import LowRank
from lorabake.methods import get
from lorabake.methods.method import Context, Fused
from lorabake.runtime.plan import Constant, Threshold, select

from .pairs import random_pairs

CPU = torch.device("cpu")


def fuse(pairs: Sequence[Pair], preset: str = "klora", **settings: object) -> Fused:
    chosen = recipe.resolve(None, preset, settings)
    return get(chosen.method).fuse(pairs, chosen.params, Context(CPU))


def dense(layer: LowRank) -> torch.Tensor:
    B, A = layer.up.double().flatten(1), layer.down.double().flatten(1)
    return (layer.scale * B @ A).abs().flatten().sort(descending=True).values


def chosen(pair: Pair) -> bool:
    return (
        pair.content is not None
        and pair.style is not None
        and pair.name.component not in ("text_encoder", "text_encoder_2")
    )


def oracle(
    pairs: Sequence[Pair], steps: int, *, pattern: str = "linear", alpha: float = 1.5,
    beta: float = 0.5, gamma: Any = "sum", k: Any = "1x",
) -> tuple[float, list[list[tuple[int, float]] | None]]:  # fmt: skip
    """Gamma, and per layer and step (choice, relative margin); None where both are summed."""
    both = [
        (dense(p.content), dense(p.style)) for p in pairs if p.content and p.style and chosen(p)
    ]
    ratios = torch.tensor([float(c.sum() / s.sum()) for c, s in both], dtype=torch.float64)
    match gamma:
        case "sum":
            gamma = sum(float(c.sum()) for c, _ in both) / sum(float(s.sum()) for _, s in both)
        case "trimmed-mean":
            ratios = ratios[ratios.isfinite()]
            gamma = float(ratios[ratios < 3 * ratios.mean()].mean())
        case "none":
            gamma = 1
        case _:
            pass
    rows: list[list[tuple[int, float]] | None] = []
    for p in pairs:
        if not (p.content and p.style and chosen(p)):
            rows.append(None)
            continue
        c, s = dense(p.content), dense(p.style)
        many = p.content.rank * p.style.rank
        count = k if isinstance(k, int) else max(1, round(float(k[:-1]) * many))
        left, right = float(c[:count].sum()), float(s[:count].sum())
        row: list[tuple[int, float]] = []
        for i in range(steps):
            scale = alpha * i / steps + beta
            scaled = right * gamma * (scale % alpha if pattern == "modulo" else scale)
            margin = abs(left - scaled) / max(left, scaled)
            row.append((0 if left >= scaled else 1, margin))
        rows.append(row)
    return float(gamma), rows


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("klora", {}, {}),
    ("klora-s-star", {}, {"pattern": "modulo", "beta": 1.3}),
    ("klora-released", {}, {"pattern": "modulo", "beta": 1.275, "gamma": "trimmed-mean"}),
    *(("klora", given, given) for given in (
        {"gamma": "none"}, {"gamma": 0.7}, {"gamma": 3}, {"gamma": "trimmed-mean"},
        {"k": 1}, {"k": 7}, {"k": 10**9}, {"k": "2x"}, {"k": "0.25x"}, {"k": "0.001x"},
        {"alpha": 0.8, "beta": 0.9}, {"alpha": -1, "beta": 1.5},
    )),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "settings", "book"), CASES)
def test_decides_as_the_paper(preset: str, settings: dict[str, Any], book: dict[str, Any]) -> None:
    styles = 0
    for seed, steps in itertools.product(range(3), (1, 4, 25, 50)):
        pairs = random_pairs(seed)
        fused = fuse(pairs, preset, **settings)
        gamma, rows = oracle(pairs, steps, **book)
        assert fused.plan.scale is not None
        assert fused.plan.scale.gamma == pytest.approx(gamma, rel=1e-9)
        assert fused.notes is not None
        assert fused.notes["gamma"] == fused.plan.scale.gamma
        for rule, row in zip(fused.plan.rules, rows, strict=True):
            if row is None:
                assert rule == Constant((1.0, 1.0))
                continue
            for i, (choice, margin) in enumerate(row):
                found = select(rule, fused.plan.scale, Fraction(i, steps))
                assert found == choice or margin < 1e-9
                styles += choice
    assert styles > 0


def test_a_layer_that_the_style_left_alone_is_the_content_s() -> None:
    quiet = "unet.down_blocks.0.attentions.0.to_q.0"
    for gamma in ("sum", "trimmed-mean"):
        fused = fuse(random_pairs(0, zeroed=quiet), gamma=gamma)
        assert isinstance(fused.plan.rules[0], Threshold)
        assert fused.plan.rules[0].scores[1] == 0
        assert select(fused.plan.rules[0], fused.plan.scale, Fraction(49, 50)) == 0


@pytest.mark.parametrize("side", ["content", "style"])
@pytest.mark.parametrize("gamma", ["sum", "trimmed-mean"])
def test_a_lora_that_changes_nothing_has_no_gamma(side: str, gamma: str) -> None:
    pairs = [
        Pair(p.name,
             p.content and p.content.scaled(0.0 if side == "content" else 1.0),
             p.style and p.style.scaled(0.0 if side == "style" else 1.0))
        for p in random_pairs(0)
    ]  # fmt: skip
    with pytest.raises(PairError, match=f"the {side} LoRA changes nothing"):
        fuse(pairs, gamma=gamma)
    fuse(pairs, gamma="none")


@pytest.mark.parametrize("method", ["klora", "est"])
def test_a_content_that_is_zero_where_the_style_acts_has_no_gamma(method: str) -> None:
    pairs = [
        Pair(p.name, p.content and p.content.scaled(float(i % 2)),
             p.style and p.style.scaled(float(1 - i % 2)))
        for i, p in enumerate(random_pairs(0))
    ]  # fmt: skip
    params = recipe.resolve(method, None, {"gamma": "trimmed-mean"}).params
    with pytest.raises(PairError, match=r"^gamma: .* in the layers that the style LoRA changes"):
        get(method).fuse(pairs, params, Context(CPU))


def test_two_loras_that_share_only_a_text_encoder_are_refused() -> None:
    pairs = [p for p in random_pairs(0) if p.name.component != "unet" or not p.both]
    with pytest.raises(PairError, match="share no layer of the denoiser"):
        fuse(pairs)


def test_progress_counts_up_to_its_total() -> None:
    told: list[tuple[int, int]] = []
    pairs = random_pairs(0)
    context = Context(CPU, tell=lambda stage, *at: told.append(at))
    get("klora").fuse(pairs, recipe.resolve().params, context)
    assert [done for done, _ in told] == list(range(1, told[0][1] + 1))
