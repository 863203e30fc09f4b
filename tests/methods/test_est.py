"""EST-LoRA decides as its authors' code does: against dense float64 norms taken here."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import lorabake
from lorabake import bundle, plots, recipe
from lorabake.errors import PairError, RecipeError
from lorabake.lora.energy import energy
from lorabake.lora.pairs import Pair
from lorabake.lora.types import LowRank
from lorabake.methods import get
from lorabake.methods.method import Context, Fused
from lorabake.runtime.plan import Constant, Threshold, select

from ..oracle import Shapes, write_lora
from .pairs import random_pairs

CPU = torch.device("cpu")
SHAPES: Shapes = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{p}": (16, 16)
                  for p in ("to_q", "to_k", "to_v", "to_out.0")}  # fmt: skip


def fuse(pairs: Sequence[Pair], **settings: object) -> Fused:
    params = recipe.resolve("est", None, settings).params
    return get("est").fuse(pairs, params, Context(CPU))


def dense(layer: LowRank | None) -> torch.Tensor:
    assert layer is not None
    shape = (layer.up.shape[0], *layer.down.shape[1:])
    rank = layer.down.shape[0]
    delta = torch.zeros(shape, dtype=torch.float64).flatten(1)
    for r in range(rank):
        delta += torch.outer(layer.up[:, r].double().flatten(), layer.down[r].double().flatten())
    return delta * layer.scale


def ratio(option: Any, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    match option:
        case "trimmed-mean":
            ratios = torch.stack([c.abs().sum() / s.abs().sum() for c, s in layers])
            return float(ratios[ratios < 3 * ratios.mean()].mean())
        case "energy":
            return float(
                sum(c.norm() ** 2 for c, _ in layers) / sum(s.norm() ** 2 for _, s in layers)
            )
        case "none":
            return 1.0
        case _:
            return float(option)


@pytest.mark.parametrize(
    "given",
    [{}, {"gamma": "energy"}, {"gamma": "none", "beta": 1.1}, {"gamma": 0.4, "alpha": 0.3},
     {"pattern": "modulo", "beta": 1.275}],
)  # fmt: skip
def test_decides_by_energy(given: dict[str, Any]) -> None:
    chosen = {0: 0, 1: 0}
    for seed in range(3):
        pairs = random_pairs(seed)
        fused = fuse(pairs, **given)
        shared = [p for p in pairs if p.both and not p.name.component.startswith("text_encoder")]
        updates = {p.name: (dense(p.content), dense(p.style)) for p in shared}
        gamma = ratio(given.get("gamma", "trimmed-mean"), list(updates.values()))
        alpha, beta = given.get("alpha", 1.5), given.get("beta", 0.5)
        assert fused.notes is not None
        assert fused.notes["gamma"] == pytest.approx(gamma, rel=1e-7)
        for pair, rule in zip(pairs, fused.plan.rules, strict=True):
            if pair.name not in updates:
                assert rule == Constant((1.0, 1.0))
                continue
            content, style = (float(torch.linalg.svdvals(x).square().sum())
                              for x in updates[pair.name])  # fmt: skip
            assert isinstance(rule, Threshold)
            assert rule.scores == pytest.approx((content, style), rel=1e-12)
            for i in range(10):
                scale = alpha * i / 10 + beta
                scale = scale % alpha if "pattern" in given else scale
                right = style * gamma * scale
                found = select(rule, fused.plan.scale, Fraction(i, 10))
                assert found == int(content < right) or abs(content - right) < 1e-6 * right
                chosen[int(content < right)] += 1
    assert min(chosen.values()) > 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_energy_is_exact(dtype: torch.dtype) -> None:
    dice = torch.Generator().manual_seed(0)
    for out, *width in ((40, 300), (7, 5, 3, 3), (1, 1)):
        down = torch.randn(6, *width, generator=dice).to(dtype) * 1e-3
        up = torch.randn(out, 6, *(1 for _ in width[1:]), generator=dice).to(dtype)
        layer = LowRank(down, up, -0.37)
        assert energy(layer) == pytest.approx(float(dense(layer).square().sum()), rel=1e-12)
        assert energy(LowRank(down, torch.zeros_like(up))) == 0.0


def test_the_strength_of_a_whole_lora_does_not_matter_with_energy() -> None:
    pairs = random_pairs(1)
    faint = [Pair(p.name, p.content, p.style and p.style.scaled(0.01)) for p in pairs]
    for option, same in (("energy", True), ("trimmed-mean", False)):
        plans = [fuse(x, gamma=option).plan for x in (pairs, faint)]
        picks = [[select(rule, plan.scale, Fraction(1, 3)) for rule in plan.rules]
                 for plan in plans]  # fmt: skip
        assert (picks[0] == picks[1]) == same


def test_bad_input() -> None:
    with pytest.raises(
        RecipeError, match=r"gamma: 'sum' is not possible\. Choose from trimmed-mean"
    ):
        recipe.resolve("est", None, {"gamma": "sum"})
    with pytest.raises(PairError, match="share no layer of the denoiser"):
        fuse([p for p in random_pairs(0) if p.name.component != "unet" or not p.both])
    quiet = [Pair(p.name, p.content, p.style and p.style.scaled(0.0)) for p in random_pairs(0)]
    for option in ("energy", "trimmed-mean"):
        with pytest.raises(PairError, match="the style LoRA changes nothing"):
            fuse(quiet, gamma=option)
    huge = [Pair(p.name, p.content and p.content.scaled(1e200), p.style) for p in random_pairs(0)]
    with pytest.raises(PairError, match="the content LoRA's weights are too large to be summed"):
        fuse(huge)


def test_in_a_bundle(tmp_path: Path) -> None:
    loras = (tmp_path / "cat.safetensors", tmp_path / "ink.safetensors")
    updates = [write_lora(path, SHAPES, "kohya", i, keep=1.0) for i, path in enumerate(loras)]
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*loras, out, preset="est", gamma="energy", beta=0.7)
    found = lorabake.load(out)
    for layer in bundle.describe(found)["layers"]:
        name = f"{layer['component']}.{layer['module']}"
        wanted = [float(lora.delta[name].square().sum()) for lora in updates]
        assert [layer["content_score"], layer["style_score"]] == pytest.approx(wanted, rel=1e-6)
    always = found.selection(9, alpha=0, beta=1e9)
    assert always.all()
    assert plots.plot(found, tmp_path / "plan.png", steps=9)["both"] == 0.0
    assert bundle.verify(out, loras).compared == 8
