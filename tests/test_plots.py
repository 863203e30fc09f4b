from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lorabake
from lorabake import plots
from lorabake.bundle import with_columns
from lorabake.errors import OutputError
from lorabake.lora import LayerName, LowRank, Pair
from lorabake.parts import part
from lorabake.runtime import Bundle
from lorabake.runtime.manifest import Layer
from lorabake.runtime.plan import Constant, Table

from .bundle.baked import baked
from .oracle import sha256, write_lora

CONTENT, STYLE, BOTH = (59, 111, 182), (242, 163, 58), (217, 217, 217)
PRODUCT = (107, 107, 107)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    shapes = {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{p}": (8, 8)
        for p in ("to_q", "to_k")
    }
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for seed, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed, keep=1.0)
    lorabake.make(*paths, tmp_path / "bundle.safetensors")
    return lorabake.load(tmp_path / "bundle.safetensors")


def planned(bundle: Bundle, layers: list[Layer]) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, layers=tuple(layers), scale=None))


def colours(path: Path) -> dict[tuple[int, ...], float]:
    """Share of each colour of a picture."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    counted = image.getcolors(image.width * image.height) or []
    total = image.width * image.height
    return {colour: count / total for count, colour in counted if isinstance(colour, tuple)}


@pytest.mark.parametrize("count", [1, 20, 1500])
@pytest.mark.parametrize("steps", [1, 50])
def test_any_number_of_layers(bundle: Bundle, tmp_path: Path, count: int, steps: int) -> None:
    rules = [Table((0, 1)), Constant((1.0, 1.0))]
    layers = [
        Layer("unet", f"down_blocks.{i % 7}.a{i}", "", "", (1, 1), rules[i % 2])
        for i in range(count)
    ]
    layers.sort(key=lambda layer: layer.module)
    out = tmp_path / "plan.png"
    share = plots.plot(planned(bundle, layers), out, steps=steps)
    assert sum(share.values()) == pytest.approx(1)
    found = colours(out)
    assert found[CONTENT] > 0.1
    if count > 1:
        assert share["both"] == 0.5
        assert found[BOTH] > 0.1
    assert (STYLE in found) == (steps > 1)


def weighted(path: Path, count: int, content: float, style: float) -> Bundle:
    """Coefficients that scatter around these; every third layer has none."""
    g = torch.Generator().manual_seed(0)
    factors = LowRank(torch.ones(1, 40), torch.ones(2, 1))
    pairs = [
        Pair(LayerName("unet", f"down_blocks.{i % 3}.resnets.{i}.conv1"), factors, factors)
        for i in range(count)
    ]
    pairs.sort(key=lambda pair: pair.name.module)
    noise = 0.1 * torch.randn(count, 2, 40, generator=g)
    m = [(c + content, s + style) if i % 3 != 2 else None for i, (c, s) in enumerate(noise)]
    return lorabake.load(baked(path, with_columns(pairs, m, torch.float32)))


@pytest.mark.parametrize("count", [1, 20, 600])
def test_column_coefficients(tmp_path: Path, count: int) -> None:
    bundle = weighted(tmp_path / "b.safetensors", count, 1.2, 0.3)
    share = plots.plot(bundle, tmp_path / "a.png")
    assert share == {"content": 0.0, "style": 0.0, "both": 1.0}
    found = colours(tmp_path / "a.png")
    # Two bands, drawn over white, and three lines.
    for colour in (CONTENT, STYLE):
        band = tuple(round(255 - 0.25 * (255 - c)) for c in colour)
        near = sum(
            part
            for other, part in found.items()
            if max(abs(a - b) for a, b in zip(band, other, strict=True)) <= 1
        )
        assert near > 0.01
        assert found[colour] > 1e-3
    assert found[PRODUCT] > 1e-3
    plots.plot(bundle, tmp_path / "again.png")
    assert sha256(tmp_path / "a.png") == sha256(tmp_path / "again.png")


def test_the_picture_is_of_the_coefficients(tmp_path: Path) -> None:
    """Content above style in one picture, below it in the other."""
    heights: list[dict[tuple[int, ...], float]] = []
    for i, (content, style) in enumerate([(1.2, 0.3), (0.3, 1.2)]):
        plots.plot(weighted(tmp_path / f"{i}", 3, content, style), tmp_path / f"{i}.png")
        with Image.open(tmp_path / f"{i}.png") as file:
            # Below the legend, which has the colours too.
            pixels = np.asarray(file.convert("RGB"))[120:]
        rows = {colour: (pixels == colour).all(-1).nonzero()[0] for colour in (CONTENT, STYLE)}
        heights.append({colour: float(found.mean()) for colour, found in rows.items()})
    assert heights[0][CONTENT] < heights[0][STYLE]
    assert heights[1][CONTENT] > heights[1][STYLE]


def test_same_plan_same_picture(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.plot(bundle, tmp_path / name, steps=25)
    assert sha256(tmp_path / "a.png") == sha256(tmp_path / "b.png")


@pytest.mark.parametrize("method", ["$\\frac{$", "$x^2$ costs $5", "a" * 5000])
def test_a_name_is_never_a_formula(bundle: Bundle, tmp_path: Path, method: str) -> None:
    plots.plot(replace(bundle, manifest=replace(bundle.manifest, method=method)), tmp_path / "x")
    assert colours(tmp_path / "x")[STYLE] > 0


def test_the_bundle_is_not_painted_over(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="one of the inputs"):
        plots.plot(bundle, bundle.path, force=True)
    plots.plot(bundle, tmp_path / "x.png")
    with pytest.raises(OutputError, match="exists already"):
        plots.plot(bundle, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("component", "module", "label"),
    [
        ("unet", "down_blocks.2.attentions.0.proj_in", "down 2"),
        ("unet", "mid_block.resnets.0.conv1", "mid"),
        ("unet", "conv_in", "other"),
        ("transformer", "transformer_blocks.11.attn.to_q", "blocks"),
        ("transformer", "single_transformer_blocks.3.proj_mlp", "single"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1", "text"),
        ("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1", "text 2"),
    ],
)
def test_parts(component: str, module: str, label: str) -> None:
    assert part(component, module) == label
