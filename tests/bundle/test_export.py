"""Plain LoRAs of a bundle against dense sums over time; the oracle shares no code with export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import lorabake
from lorabake import lora
from lorabake.bundle import complete, strengthen, with_columns
from lorabake.bundle.export.shares import shares
from lorabake.bundle.export.static import Static
from lorabake.bundle.rewrite import rewrite
from lorabake.bundle.stack import stack
from lorabake.errors import BundleError, OutputError, RecipeError
from lorabake.runtime.plan import Pattern, Scale, Table, Threshold, select

from ..oracle import Dense, Shapes, klora, sha256, write_lora
from ..runtime.guided import guidance
from .baked import baked, drawn
from .plain import away, deltas, error, mean, moments, size

BLOCK = "attentions.0.transformer_blocks.0"
SHAPES: Shapes = {
    f"unet.{block}.{BLOCK}.{attention}.to_{p}": (16, 16)
    for block in ("down_blocks.0", "mid_block", "up_blocks.1")
    for attention, p in (("attn1", "q"), ("attn1", "k"), ("attn2", "q"))
} | {
    "unet.mid_block.resnets.0.conv1": (10, 6, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (12, 12),
}
Sources = tuple[Path, Path, Dense, Dense]
FINE = 1200
"""Moments of the dense mean over time."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    paths = folder / "cat.safetensors", folder / "ink.safetensors"
    content = write_lora(paths[0], SHAPES, "kohya", 3, keep=0.95)
    return *paths, content, write_lora(paths[1], SHAPES, "peft", 4, keep=0.95)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)


def made(sources: Sources, method: str, **params: Any) -> Path:
    lorabake.make(sources[0], sources[1], "b.safetensors", method=method, **params)
    return Path("b.safetensors")


def test_a_direct_merge_is_exact(sources: Sources) -> None:
    bundle = made(sources, "direct", w_c=0.5, w_s=2.0, content_strength=3.0)
    report = lorabake.export(bundle, "p.safetensors")
    assert report.exact
    found = deltas(Path("p.safetensors"))
    content, style = sources[2].delta, sources[3].delta
    assert found.keys() == {*content, *style}
    for name, delta in found.items():
        wanted = 1.5 * content.get(name, 0) + 2.0 * style.get(name, 0)
        assert error(delta, torch.as_tensor(wanted)) <= 1e-6, name


def test_copied_factors_are_the_same_bits(sources: Sources) -> None:
    bundle = made(sources, "direct")
    lorabake.export(bundle, "p.safetensors", "kohya")
    plain = load_file("p.safetensors")
    stored = load_file(bundle)
    assert {key for key in plain if not key.endswith(".alpha")} == stored.keys()
    for key, tensor in stored.items():
        assert torch.equal(plain[key], tensor), key


def test_b_lora_is_exact(sources: Sources) -> None:
    """Content in one block, style in another, nothing elsewhere."""
    bundle = made(sources, "blora", content_blocks=["mid_block"], style_blocks=["up_blocks.1"])
    assert lorabake.export(bundle, "p.safetensors").exact
    found = deltas(Path("p.safetensors"))
    wanted = {n: d for n, d in sources[2].delta.items() if n.startswith("unet.mid_block")}
    wanted |= {n: d for n, d in sources[3].delta.items() if n.startswith("unet.up_blocks.1")}
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert error(found[name], delta) <= 1e-6, name
    lorabake.export(bundle, "c.safetensors", only="content")
    assert {*deltas(Path("c.safetensors"))} == {n for n in wanted if ".mid_block." in n}


@pytest.mark.parametrize("pattern", [{}, {"pattern": "modulo", "beta": 1.3}])
def test_klora_is_the_mean_over_time(sources: Sources, pattern: dict[str, Any]) -> None:
    bundle = made(sources, "klora", **pattern)
    report = lorabake.export(bundle, "p.safetensors")
    verdicts = klora(
        sources[2], sources[3], FINE, beta=pattern.get("beta", 0.5), modulo="pattern" in pattern
    )
    at, found = moments(sources[2], sources[3], verdicts), deltas(Path("p.safetensors"))
    (part,) = report.parts
    assert found.keys() == at.keys() == {x.layer for x in part.layers}
    assert not report.exact
    for layer in part.layers:
        here = at[layer.layer]
        assert error(found[layer.layer], mean(here)) <= 4 / FINE, layer
        wanted = (away(here, mean(here)) / size(here)) ** 0.5
        assert layer.plan_error == pytest.approx(wanted, abs=0.01), layer
        assert layer.rank_error == 0
    assert sum(layer.plan_error > 0.1 for layer in part.layers) >= 4
    total = sum(away(x, mean(x)) for x in at.values()) / sum(map(size, at.values()))
    assert part.plan_error == pytest.approx(total**0.5, rel=0.01)


@pytest.mark.parametrize("method", ["klora", "random"])
def test_the_mean_over_some_steps(sources: Sources, method: str) -> None:
    """Of 7 steps: the mean of the 7 updates that the bundle itself applies."""
    bundle = made(sources, method)
    lorabake.export(bundle, "p.safetensors", steps=7)
    found = deltas(Path("p.safetensors"))
    opened = lorabake.load(bundle)
    rows = [opened.select(layer, 7) for layer in opened.manifest.layers]
    content, style = sources[2].delta, sources[3].delta
    for layer, row in zip(opened.manifest.layers, rows, strict=True):
        own = content.get(str(layer), 0), style.get(str(layer), 0)
        steps = [own[0] + own[1] if i is None else own[i] for i in row]
        assert error(found[str(layer)], torch.as_tensor(sum(steps) / 7)) <= 1e-6


def test_a_moment_is_exact(sources: Sources) -> None:
    bundle = made(sources, "klora")
    verdicts = klora(sources[2], sources[3], 10)
    at, chosen = moments(sources[2], sources[3], verdicts), set[int | None]()
    for step, progress in ((0, 0), (3, 0.3), (9, Fraction(9, 10))):
        report = lorabake.export(bundle, f"{step}.safetensors", at=progress)
        assert report.exact
        found = deltas(Path(f"{step}.safetensors"))
        for name, verdict in verdicts.items():
            assert verdict.margin > 1e-6
            assert error(found[name], at[name][step]) <= 1e-6, (name, step)
            chosen.add(verdict.select[step])
    assert chosen == {0, 1, None}


def test_a_timeline(sources: Sources) -> None:
    bundle = made(sources, "klora")
    report = lorabake.export(bundle, "p.safetensors", timeline=8)
    sidecar = json.loads(Path("p-timeline.json").read_text())
    at = moments(sources[2], sources[3], klora(sources[2], sources[3], FINE))
    assert report.sidecar == "p-timeline.json"
    assert 2 < len(report.parts) <= 8
    assert [part.start for part in report.parts] == [0, *(part.end for part in report.parts[:-1])]
    assert report.parts[-1].end == 1
    assert {part.plan_error == 0 for part in report.parts} == {True, False}
    for part, row in zip(report.parts, sidecar["parts"], strict=True):
        assert list(part.files) == row["files"]
        assert (row["start"], row["end"]) == (part.start, part.end)
        found = deltas(Path(part.files[0]))
        window = slice(round(part.start * FINE), round(part.end * FINE))
        for layer in part.layers:
            here = at[layer.layer][window]
            assert error(found[layer.layer], mean(here)) <= 40 / FINE
            wanted = (away(here, mean(here)) / size(here)) ** 0.5
            assert layer.plan_error == pytest.approx(wanted, abs=0.06)


def test_parts_that_are_alike_become_one(sources: Sources) -> None:
    """With the scale alone all layers switch at p = 1/3."""
    bundle = made(sources, "fixed")
    report = lorabake.export(bundle, "p.safetensors", timeline=9)
    assert [(part.start, part.end) for part in report.parts] == [
        (0, pytest.approx(1 / 3)), (pytest.approx(1 / 3), 1),
    ]  # fmt: skip
    assert report.exact
    assert [part.files for part in report.parts] == [
        ("p-01-of-02.safetensors",), ("p-02-of-02.safetensors",),
    ]  # fmt: skip
    rows = json.loads(Path("p-timeline.json").read_text())["parts"]
    assert [(x["start_percent"], x["end_percent"]) for x in rows] == [(0, 0.332), (0.332, 1)]
    first, second = (deltas(Path(part.files[0])) for part in report.parts)
    name = f"unet.mid_block.{BLOCK}.attn1.to_q"
    assert error(first[name], sources[2].delta[name]) <= 1e-6
    assert error(second[name], sources[3].delta[name]) <= 1e-6


def test_a_switch_at_the_end_of_a_part_is_not_inside() -> None:
    """S(1/3) = 1, so all switch there, but for the rounding of gamma."""
    third = Fraction(1, 3)
    for content, style in ((0.1 * i, 0.7 * j) for i in range(1, 20) for j in range(1, 20)):
        rule = Threshold((content, style))
        scale = Scale("linear", 1.5, 0.5, content / style)
        assert shares(rule, scale, Fraction(1, 4), third) == {(1.0, 0.0): 1}
        assert shares(rule, scale, third, Fraction(5, 12)) == {(0.0, 1.0): 1}


def test_a_source_that_is_there_for_a_moment() -> None:
    """Alone float16 could not hold it, beside the other one it is no matter."""
    g = torch.Generator().manual_seed(0)
    both = [
        lora.LowRank(
            torch.randn(r, 16, generator=g).half() / 64, torch.randn(12, r, generator=g).half() / 64
        )
        for r in (3, 4)
    ]
    share = Fraction(1, 10**6)
    layer = Static(
        lora.LayerName("unet", "conv_in"), (12, 16), (0, 1), 7,
        {(1.0, 0.0): 1 - share, (0.0, 1.0): share}, lambda: both,
    )  # fmt: skip
    factors, plan, _ = layer.factors(None)
    down, up = (x.double() for x in stack(factors, 7, torch.float16))
    dense = [x.up.double() @ x.down.double() for x in both]
    wanted = (1 - float(share)) * dense[0] + float(share) * dense[1]
    assert error(up @ down, wanted) <= 1e-3
    away = float((dense[1] - dense[0]).norm() ** 2) * float(share)
    assert plan.error == pytest.approx(away, rel=1e-3)


@pytest.mark.parametrize(("to", "timeline"), [("kohya", 4), ("peft", None)])
def test_an_interrupted_export_changes_nothing(
    sources: Sources, to: Any, timeline: int | None
) -> None:
    bundle = made(sources, "klora")

    def interrupt(_stage: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    for old in (False, True):
        if old:
            lorabake.export(bundle, "p", to, timeline=timeline)
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        with pytest.raises(KeyboardInterrupt):
            lorabake.export(
                bundle, "p", to, timeline=timeline, rank=3, force=True, progress=interrupt
            )
        assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["direct", "klora"])
def test_fewer_ranks(sources: Sources, method: str) -> None:
    bundle = made(sources, method)
    lorabake.export(bundle, "whole.safetensors")
    report = lorabake.export(bundle, "p.safetensors", rank=3)
    (part,) = report.parts
    whole, found = deltas(Path("whole.safetensors")), deltas(Path("p.safetensors"))
    lost = kept = 0.0
    for layer in part.layers:
        dense = whole[layer.layer]
        values = torch.linalg.svdvals(dense.flatten(1))
        best = float(values[3:].norm() / values.norm())
        assert error(found[layer.layer], dense) == pytest.approx(best, abs=1e-5)
        assert layer.rank_error == pytest.approx(best, abs=1e-5)
        lost, kept = lost + float(values[3:].norm() ** 2), kept + float(values.norm() ** 2)
    assert max(part.ranks.values()) == 3
    assert part.rank_error == pytest.approx((lost / kept) ** 0.5, rel=1e-4)
    plan = lorabake.export(bundle, "whole.safetensors", force=True).parts[0].plan_error
    assert part.plan_error == plan
    assert (plan > 0) == (method == "klora")


@pytest.mark.parametrize("only", ["content", "style"])
def test_the_inputs_back(sources: Sources, only: Any) -> None:
    bundle = made(sources, "klora", content_strength=0.7, style_strength=3.0)
    report = lorabake.export(bundle, "p.safetensors", only=only)
    assert report.exact
    dense: Dense = sources[2] if only == "content" else sources[3]
    found = deltas(Path("p.safetensors"))
    assert found.keys() == dense.delta.keys()
    for name, wanted in dense.delta.items():
        assert error(found[name], wanted) <= 1e-6
    ranks = {layer.layer: layer.rank for layer in report.parts[0].layers}
    assert ranks == dense.rank


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ziplora_is_exact_and_gives_its_inputs_back(sources: Sources, dtype: torch.dtype) -> None:
    strengths = (0.7, 3.0)
    pairs = strengthen(complete(lora.pair(*lora.read_both(*sources[:2]))), strengths)
    coefficients = drawn(pairs)
    weighted = with_columns(pairs, coefficients, dtype)
    baked(Path("z"), weighted, dtype, strengths=strengths)
    assert lorabake.export("z", "p.safetensors").exact
    lorabake.export("z", "c.safetensors", only="content")
    found, back = deltas(Path("p.safetensors")), deltas(Path("c.safetensors"))
    eps = float(torch.finfo(dtype).eps)
    for pair, both in zip(pairs, coefficients, strict=True):
        total = torch.zeros(pair.shape, dtype=torch.float64)
        for i, dense in enumerate(sources[2:4]):
            if (delta := dense.delta.get(str(pair.name))) is not None:
                delta = strengths[i] * delta
                for j in range(delta.shape[1]) if both else ():
                    m = float(both[i].to(dtype)[j]) if both else 1.0
                    m = m if abs(m) >= 2**-10 else (-(2**-10) if m < 0 else 2**-10)
                    delta[:, j] *= m
                total += delta
        assert error(found[str(pair.name)], total) <= 2 * eps
    assert back.keys() == sources[2].delta.keys()
    for name, wanted in sources[2].delta.items():
        assert error(back[name], wanted) <= 3 * eps, name


def test_sources_without_a_gate_are_left_out(sources: Sources) -> None:
    """At the first step K-LoRA takes content nearly everywhere: no style factors are there."""
    bundle = made(sources, "fixed")
    report = lorabake.export(bundle, "p.safetensors", at=0)
    ranks = {layer.layer: layer.rank for layer in report.parts[0].layers}
    for name, rank in sources[2].rank.items():
        both = name in sources[3].rank and name.startswith("text_encoder")
        assert ranks[name] == rank + (sources[3].rank[name] if both else 0)


def test_shares_are_those_of_a_fine_grid() -> None:
    g = torch.Generator().manual_seed(0)
    rules: list[tuple[Any, Scale | None]] = [(Table((0, 1, 1, 0, 1)), None)]
    patterns: list[Pattern] = ["linear", "modulo"]
    for i in range(40):
        a, b, c, s, gamma = (2 * torch.rand(5, generator=g)).tolist()
        pattern = patterns[i % 2]
        slope = -a if pattern == "linear" and i % 3 == 0 else a
        rules.append((Threshold((c, s)), Scale(pattern, slope, b, gamma)))
    mixed, start, end, count = 0, Fraction(1, 5), Fraction(6, 7), 1000
    for rule, scale in rules:
        grid = [start + (end - start) * Fraction(2 * i + 1, 2 * count) for i in range(count)]
        content = sum(select(rule, scale, p) == 0 for p in grid) / count
        found = shares(rule, scale, start, end)
        assert sum(found.values()) == 1
        assert float(found.get((1.0, 0.0), 0)) == pytest.approx(content, abs=2 / count)
        mixed += 0 < content < 1
    assert mixed > 8


def test_what_the_file_says(sources: Sources) -> None:
    bundle = made(sources, "klora")
    lorabake.export(bundle, "p.safetensors", "kohya", rank=4)
    with safe_open("p.safetensors", "pt") as file:
        said = file.metadata()
    assert "lorabake" not in said
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "4"
    assert "time-average" in said["modelspec.description"]
    assert "rank 4" in said["modelspec.description"]
    assert said["modelspec.merged_from"] == "cat, ink"
    lorabake.export(bundle, "c.safetensors", only="content")
    with safe_open("c.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "cat"
    digests = {sha256(Path("p.safetensors"))}
    lorabake.export(bundle, "p.safetensors", "kohya", rank=4, force=True)
    assert digests == {sha256(Path("p.safetensors"))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 1}, "at: 1 is out of range"),
        ({"at": float("nan")}, "at: nan is out of range"),
        ({"timeline": 0}, "timeline: 0 is out of range"),
        ({"steps": True}, "steps: True is out of range"),
        ({"rank": 0}, "rank: 0 is out of range"),
        ({"rank": 99}, "rank: 99 is not less than what the layers have"),
        ({"to": "onnx"}, "to: there is no 'onnx'.*diffusers, kohya, peft"),
        ({"only": "both"}, "only: there is no 'both'"),
        ({"at": 0.5, "timeline": 3}, "at and timeline cannot both be given"),
        ({"only": "style", "steps": 3}, "only and steps cannot both be given"),
    ],
)
def test_bad_values(sources: Sources, options: dict[str, Any], message: str) -> None:
    bundle = made(sources, "direct")
    with pytest.raises(RecipeError, match=message):
        lorabake.export(bundle, "p.safetensors", **options)
    assert [path.name for path in Path.cwd().iterdir()] == [bundle.name]


def test_outputs_are_protected(sources: Sources) -> None:
    bundle = made(sources, "klora")
    with pytest.raises(OutputError, match="one of the inputs"):
        lorabake.export(bundle, bundle, force=True)
    lorabake.export(bundle, "p", "peft")
    with pytest.raises(OutputError, match=r"adapter_model\.safetensors: exists already"):
        lorabake.export(bundle, "p", "peft")
    shutil.rmtree("p/text_encoder")
    with pytest.raises(OutputError, match="exists already"):
        lorabake.export(bundle, "p", "peft")
    assert not Path("p/text_encoder").exists()
    Path("p-timeline.json").write_text("mine")
    with pytest.raises(OutputError, match=r"p-timeline\.json: exists already"):
        lorabake.export(bundle, "p.safetensors", timeline=2)
    assert not list(Path().glob("p-0*"))
    Path("b.safetensors").write_bytes(bundle.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match="digest"):
        lorabake.export(bundle, "q.safetensors")
    assert not Path("q.safetensors").exists()


def test_a_strength_of_zero_cannot_be_divided_out(sources: Sources) -> None:
    bundle = made(sources, "direct", w_s=0.0)
    with pytest.raises(RecipeError, match="strength 0"):
        lorabake.export(bundle, "p.safetensors", only="style")


def test_guidance_is_left_behind_with_a_word(sources: Sources) -> None:
    bundle = lorabake.load(made(sources, "direct"))
    with Path("guided").open("wb") as file:
        rewrite(file, bundle.path, replace(bundle.manifest, guidance=guidance()))
    assert "guidance" in lorabake.export("guided", "p.safetensors").warnings[0]
    assert lorabake.export("guided", "c.safetensors", only="content").warnings == ()


def test_the_half_of_guidance_is_left_behind_with_a_word(sources: Sources) -> None:
    lorabake.export(made(sources, "direct"), "both.safetensors")
    one = made(sources, "direct", half="conditional", force=True)
    (warning,) = lorabake.export(one, "one.safetensors").warnings
    assert "acts in both halves" in warning
    assert Path("one.safetensors").read_bytes() == Path("both.safetensors").read_bytes()
