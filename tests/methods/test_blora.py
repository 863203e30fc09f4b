"""B-LoRA: a stock pipeline loads the bundle as the two blocks and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorabake
from lorabake import bundle, plots
from lorabake.bundle.rewrite import rewrite
from lorabake.errors import OverrideError, PairError, RecipeError
from lorabake.report import Report
from lorabake.runtime.plan import Constant

from .. import tiny
from ..bundle.test_stock import loaded
from ..oracle import Dense, write_lora

BLOCKS = ("unet.up_blocks.0.attentions.0.", "unet.up_blocks.0.attentions.1.")


@pytest.fixture
def loras(tmp_path: Path) -> tuple[tuple[Path, Path], list[Dense], Any]:
    """Two whole LoRAs of a tiny SDXL, their updates, and the pipeline."""
    pipe, _ = tiny.sdxl()
    shapes = {name: shape for name, shape in tiny.shapes(pipe).items()
              if "attn" in name and ("up_blocks" in name or "text" in name)}  # fmt: skip
    paths = (tmp_path / "cat.safetensors", tmp_path / "ink.safetensors")
    return paths, [write_lora(path, shapes, "peft", i) for i, path in enumerate(paths)], pipe


def wanted(updates: list[Dense], *roles: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The sum per layer where each LoRA has only the layers that begin so."""
    found: dict[str, torch.Tensor] = {}
    for dense, blocks in zip(updates, roles, strict=True):
        for name, delta in dense.delta.items():
            if name.startswith(blocks):
                found[name] = found.get(name, 0) + delta
    return found


def check(pipe: Any, path: Path, updates: dict[str, torch.Tensor]) -> None:
    """Stock diffusers has these updates, and a replay brings exactly them, in both ways."""
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    for name, module in tiny.layers(pipe).items():
        found = loaded(module)
        assert (found is None) == (name not in updates), name
        if found is not None:
            torch.testing.assert_close(found, updates[name], rtol=1e-5, atol=1e-7)
    pipe.unload_lora_weights()
    pipe.unet.float()
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    with lorabake.load(path).attach(pipe, mode="fused"):
        for name, module in tiny.layers(pipe).items():
            if name.startswith("unet.") and isinstance(module, torch.nn.Linear):
                change = module.weight - before[f"{name.removeprefix('unet.')}.weight"]
                delta = updates.get(name, torch.zeros_like(change)).float()
                torch.testing.assert_close(change, delta, rtol=1e-4, atol=1e-6)


def make(paths: tuple[Path, Path], **params: Any) -> tuple[Path, Report]:
    out = paths[0].with_name("bundle.safetensors")
    return out, lorabake.make(*paths, out, method="blora", force=True, **params)


def test_each_has_its_block(loras: tuple[tuple[Path, Path], list[Dense], Any]) -> None:
    paths, updates, pipe = loras
    out, report = make(paths)
    parts = wanted(updates, BLOCKS[:1], BLOCKS[1:])
    check(pipe, out, parts)
    both = {name for dense in updates for name in dense.delta}
    assert 8 < len(parts) < len(both) / 2
    assert report.layers == len(parts)
    checks = bundle.verify(out, paths)
    assert checks.compared == len(parts)
    assert checks.left_out == sum(len(dense.delta) for dense in updates) - len(parts)
    assert f"{checks.left_out} updates of the sources are left out" in str(checks)
    assert all(float(t.abs().sum()) > 0 for t in load_file(out).values())


@pytest.mark.parametrize("elsewhere", ["content", "style", "both"])
def test_elsewhere(loras: tuple[tuple[Path, Path], list[Dense], Any], elsewhere: str) -> None:
    paths, updates, pipe = loras
    out, _ = make(paths, elsewhere=elsewhere)
    others = tuple({n for d in updates for n in d.delta if not n.startswith(BLOCKS)})
    roles = [others if elsewhere in (role, "both") else () for role in ("content", "style")]
    parts = wanted(updates, (*roles[0], BLOCKS[0]), (*roles[1], BLOCKS[1]))
    empty = {name for name in tiny.layers(pipe) if name.endswith("out_proj")} - parts.keys()
    found = {f"{x.component}.{x.module}" for x in lorabake.load(out).manifest.layers}
    assert found - empty == parts.keys()
    assert bundle.verify(out, paths).compared >= len(parts)
    assert any(name.startswith("text_encoder") for name in found)


def test_blocks_of_a_user(loras: tuple[tuple[Path, Path], list[Dense], Any]) -> None:
    paths, updates, pipe = loras
    out, _ = make(paths, content_blocks="up_blocks.0.attentions.2, unet.up_blocks.1",
                  style_blocks=["up_blocks.1.attentions.0"])  # fmt: skip
    check(pipe, out, wanted(
        updates, ("unet.up_blocks.0.attentions.2.", "unet.up_blocks.1."),
        ("unet.up_blocks.1.attentions.0.",),
    ))  # fmt: skip
    assert lorabake.load(out).manifest.params["content_blocks"] == [
        "up_blocks.0.attentions.2", "unet.up_blocks.1",
    ]  # fmt: skip


def test_inspect_and_plot(loras: tuple[tuple[Path, Path], list[Dense], Any]) -> None:
    paths, updates, _ = loras
    out, _ = make(paths)
    found = lorabake.load(out)
    for layer in bundle.describe(found, 2)["layers"]:
        style = layer["module"].startswith("up_blocks.0.attentions.1.")
        assert layer["select"] == [int(style)] * 2
        assert (layer["content_rank"] > 0, layer["style_rank"] > 0) == (not style, style)
    share = plots.plot(found, out.with_name("plan.png"), steps=3)
    content = len(wanted(updates, BLOCKS[:1], ()))
    assert share["content"] == pytest.approx(content / len(found.manifest.layers))
    assert share["both"] == 0
    with pytest.raises(OverrideError, match="no selection"):
        found.selection(3)


@pytest.mark.parametrize("mode", ["fused", "hooks"])
def test_gates_may_shut_a_layer(
    loras: tuple[tuple[Path, Path], list[Dense], Any], mode: Any
) -> None:
    """The format's own way to leave out, which a reader must know though no method uses it."""
    paths, _, pipe = loras
    out, other = make(paths, elsewhere="both")[0], paths[0].with_name("shut.safetensors")
    manifest = lorabake.load(out).manifest
    shut = tuple(replace(layer, rule=Constant((0.0, 0.0))) for layer in manifest.layers)
    with other.open("wb") as file:
        rewrite(file, out, replace(manifest, layers=shut))
    _, inputs = tiny.sdxl()
    pipe.scheduler.set_timesteps(2)
    inputs["timestep"] = int(pipe.scheduler.timesteps[0])
    plain = tiny.output(pipe, inputs)
    found: list[torch.Tensor] = []
    for path in (out, other):
        with lorabake.load(path).attach(pipe, mode=mode):
            found.append(tiny.output(pipe, inputs))
    assert not torch.allclose(found[0], plain)
    assert torch.equal(found[1], plain)


def test_a_model_without_these_blocks(tmp_path: Path) -> None:
    shapes = {f"transformer.{x}": (16, 16) for x in (
        "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_k",
        "single_transformer_blocks.0.attn.to_v", "single_transformer_blocks.1.attn.to_q",
    )}  # fmt: skip
    paths = (tmp_path / "cat.safetensors", tmp_path / "ink.safetensors")
    for i, path in enumerate(paths):
        write_lora(path, shapes, "peft", i, keep=1.0)
    with pytest.raises(PairError) as caught:
        make(paths)
    assert "content_blocks: the content LoRA has no layer in up_blocks.0.attentions.0" in str(
        caught.value
    )
    assert "transformer.single_transformer_blocks.1" in str(caught.value)
    with pytest.raises(PairError, match="style_blocks: the style LoRA has no layer"):
        make(paths, content_blocks="transformer_blocks")
    out, _ = make(paths, content_blocks="transformer_blocks", style_blocks="transformer_blocks.1,"
                  "single_transformer_blocks")  # fmt: skip
    assert bundle.verify(out, paths).left_out == 3
    ranks = {x.module: x.ranks for x in lorabake.load(out).manifest.layers}
    assert [tuple(map(bool, ranks[name.removeprefix("transformer.")])) for name in shapes] == [
        (True, False), (True, True), (False, True), (False, True),
    ]  # fmt: skip


@pytest.mark.parametrize("value", [[], "", ["a", 1], 3, [""], "a,,b", {"a": 1}])
def test_what_is_no_list_of_blocks(value: object, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"style_blocks: .* is not a list of blocks"):
        lorabake.make("a", "b", tmp_path / "x", method="blora", style_blocks=value)
