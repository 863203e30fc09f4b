"""LoRA Switch takes turns as the paper does."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

import lorabake
from lorabake import bundle, plots, recipe
from lorabake.errors import RecipeError
from lorabake.methods import get
from lorabake.methods.method import Context, Fused
from lorabake.runtime.plan import Constant, select

from ..oracle import Shapes, write_lora
from .pairs import random_pairs

SHAPES: Shapes = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{p}": (16, 16)
                  for p in ("to_q", "to_k", "to_v", "to_out.0")}  # fmt: skip


def fuse(**settings: object) -> Fused:
    params = recipe.resolve("switch", None, settings).params
    return get("switch").fuse(random_pairs(3), params, Context(torch.device("cpu")))


def turns(fused: Fused, steps: int) -> list[int | None]:
    """What the layers that choose apply at each step; the same for all of them."""
    rows = [
        [select(rule, None, Fraction(i, steps)) for i in range(steps)]
        for pair, rule in zip(random_pairs(3), fused.plan.rules, strict=True)
        if pair.contested
    ]
    assert len(rows) > 5
    assert all(row == rows[0] for row in rows)
    return rows[0]


@pytest.mark.parametrize(
    ("tau", "steps", "first"),
    [(5, 50, "content"), (5, 48, "style"), (1, 7, "content"), (9, 4, "style"), (10, 200, "style")],
)
def test_the_other_one_after_every_tau_steps(tau: int, steps: int, first: str) -> None:
    wanted = list[int]()
    turn = ["content", "style"].index(first)
    while len(wanted) < steps:
        wanted += [turn] * tau
        turn = 1 - turn
    assert turns(fuse(tau=tau, steps=steps, first=first), steps) == wanted[:steps]


def test_half_the_steps_are_half_the_turns() -> None:
    assert turns(fuse(tau=4, steps=16), 8) == [0, 0, 1, 1, 0, 0, 1, 1]
    assert turns(fuse(), 10) == [0, 1] * 5


def test_what_is_not_chosen_is_summed() -> None:
    for pair, rule in zip(random_pairs(3), fuse().plan.rules, strict=True):
        assert pair.contested or rule == Constant((1.0, 1.0))


@pytest.mark.parametrize(
    ("key", "value"), [("tau", 0), ("tau", 2.5), ("steps", 10_001), ("first", "both")]
)
def test_values_out_of_range(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"^{key}: "):
        recipe.resolve("switch", None, {key: value})


def test_in_a_bundle(tmp_path: Path) -> None:
    loras = (tmp_path / "cat.safetensors", tmp_path / "ink.safetensors")
    for seed, path in enumerate(loras):
        write_lora(path, SHAPES, "peft", seed, keep=1.0)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*loras, out, preset="switch", tau=2, steps=8, first="style")
    found = lorabake.load(out)
    assert found.selection(8).tolist() == [[True, True, False, False] * 2] * 4
    assert bundle.describe(found, 4)["layers"][0]["select"] == [1, 0, 1, 0]
    share = plots.plot(found, tmp_path / "plan.png", steps=8)
    assert share == {"content": 0.5, "style": 0.5, "both": 0.0}
    assert bundle.verify(out, loras).compared == 8
