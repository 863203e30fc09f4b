"""The ablations and the direct merge."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from lorabake import recipe
from lorabake.methods import get
from lorabake.methods.method import Context, Fused
from lorabake.runtime.plan import Constant, Table, select

from .pairs import random_pairs

BOTH = Constant((1.0, 1.0))


def fuse(method: str, **settings: object) -> Fused:
    params = recipe.resolve(method, None, settings).params
    return get(method).fuse(random_pairs(3), params, Context(torch.device("cpu")))


def test_every_method_sums_one_sided_and_text_encoder_layers() -> None:
    for method in ("klora", "fixed", "random", "direct"):
        for pair, rule in zip(random_pairs(3), fuse(method).plan.rules, strict=True):
            summed = not pair.both or pair.name.component.startswith("text_encoder")
            assert (rule == BOTH) == (summed or method == "direct")


@pytest.mark.parametrize("steps", [1, 3, 4, 25, 30, 50, 75, 999])
def test_fixed_is_content_for_the_first_third_and_style_after_it(steps: int) -> None:
    plan = fuse("fixed").plan
    for rule in plan.rules:
        if rule != BOTH:
            assert [select(rule, plan.scale, Fraction(i, steps)) for i in range(steps)] == [
                int(3 * i > steps) for i in range(steps)
            ]


def test_fixed_follows_its_scale() -> None:
    plan = fuse("fixed", alpha=-2, beta=2).plan
    rule = next(rule for rule in plan.rules if rule != BOTH)
    assert [select(rule, plan.scale, Fraction(i, 4)) for i in range(4)] == [1, 1, 0, 0]


def test_random_takes_the_style_two_times_in_three() -> None:
    rules = [rule for rule in fuse("random", bins=1000).plan.rules if isinstance(rule, Table)]
    draws = [draw for rule in rules for draw in rule.select]
    assert len(draws) == 1000 * len(rules) > 5000
    assert sum(draws) / len(draws) == pytest.approx(2 / 3, abs=0.02)
    assert len({rule.select for rule in rules}) == len(rules)
    assert fuse("random").plan.scale is None


def test_random_depends_on_seed_and_layer_alone() -> None:
    assert fuse("random", seed=1).plan == fuse("random", seed=1).plan
    assert fuse("random", seed=1).plan != fuse("random", seed=2).plan
    few = random_pairs(3)[4:]
    params = recipe.resolve("random").params
    alone = get("random").fuse(few, params, Context(torch.device("cpu")))
    assert alone.plan.rules == fuse("random").plan.rules[4:]


def test_random_draws_the_same_in_every_process() -> None:
    # Written down once: each run of the tests is another process with another hash seed.
    assert next(rule for rule in fuse("random", seed=7, bins=20).plan.rules if rule != BOTH) == (
        Table((1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1))
    )


def test_direct_folds_its_weights_into_the_factors() -> None:
    fused = fuse("direct", w_c=0.8, w_s=-1)
    assert fused.strengths == (0.8, -1.0)
    assert set(fused.plan.rules) == {BOTH}
    assert fused.plan.scale is None
