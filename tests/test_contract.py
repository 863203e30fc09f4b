"""The public contract on random LoRAs: make, inspect, selection, against a dense oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import lorabake
from lorabake.cli import cli

from .oracle import Shapes, klora, sha256, write_lora

STEPS = 50
VARIANTS = {
    "klora": {},
    "klora-s-star": {"beta": 1.3, "modulo": True},
    "klora-released": {"beta": 1.275, "modulo": True, "gamma": "trimmed-mean"},
}


def unet_shapes() -> Shapes:
    """Attention, feed-forward and resnet layers of a small SD1.5-like UNet."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    wanted = ("attn1", "attn2", "ff.net", "resnets.0.conv1")
    return {
        f"unet.{name}": tuple(module.weight.shape)
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and any(w in name for w in wanted)
    }


def flux_shapes() -> Shapes:
    """Every linear inside the blocks of a small FLUX-like transformer."""
    with torch.device("meta"):
        flux = FluxTransformer2DModel(
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        )
    return {
        f"transformer.{name}": tuple(module.weight.shape)
        for name, module in flux.named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
    }


TEXT: Shapes = {
    f"text_encoder.text_model.encoder.layers.{i}.self_attn.{p}_proj": (24, 24)
    for i in range(2)
    for p in ("q", "k", "v", "out")
}


def inspect(bundle: Path) -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(cli, ["inspect", str(bundle), "--json", "--steps", str(STEPS)])
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["layers"]
    return {f"{layer['component']}.{layer['module']}": layer for layer in layers}


@pytest.mark.parametrize("preset", VARIANTS)
@pytest.mark.parametrize(
    ("shapes", "dialects"),
    [({**unet_shapes(), **TEXT}, ("kohya", "peft")), (flux_shapes(), ("peft", "peft"))],
    ids=["unet", "flux"],
)
def test_decisions_equal_the_dense_oracle(
    shapes: Shapes, dialects: tuple[str, str], preset: str, tmp_path: Path
) -> None:
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    seeds = (len(preset), len(preset) + 100)
    content, style = (
        write_lora(p, shapes, d, s) for p, d, s in zip(paths, dialects, seeds, strict=True)
    )
    out = tmp_path / "bundle.safetensors"
    command = ["make", *map(str, paths), "-o", str(out), "--preset", preset]
    assert CliRunner().invoke(cli, command).exit_code == 0
    expected = klora(content, style, STEPS, **VARIANTS[preset])  # pyright: ignore[reportArgumentType]
    found = inspect(out)
    assert set(found) == set(expected)
    rows = lorabake.load(out).selection(steps=STEPS)
    compared = 0
    for row, (name, layer) in zip(rows.tolist(), found.items(), strict=True):
        verdict = expected[name]
        assert layer["content_rank"] == content.rank.get(name, 0)
        assert layer["style_rank"] == style.rank.get(name, 0)
        if verdict.scores is None:
            assert layer["content_score"] is None
            assert layer["style_score"] is None
        else:
            scores = (layer["content_score"], layer["style_score"])
            assert scores == pytest.approx(verdict.scores, rel=1e-6)
        if verdict.margin > 1e-6:
            compared += 1
            assert layer["select"] == verdict.select
            assert row == [choice == 1 for choice in verdict.select]
    assert compared > 0.9 * len(found)


def test_fixed_and_random_follow_the_paper(tmp_path: Path) -> None:
    shapes = unet_shapes()
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    for path, seed in zip(paths, (1, 2), strict=True):
        write_lora(path, shapes, "peft", seed, keep=1.0)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(*paths, out, method="fixed")
    # S(p) = 1.5 p + 0.5 exceeds 1 after a third of the steps.
    expected = [int(1.5 * i / STEPS + 0.5 > 1) for i in range(STEPS)]
    assert all(layer["select"] == expected for layer in inspect(out).values())
    lorabake.make(*paths, out, method="random", force=True)
    style = lorabake.load(out).selection(steps=STEPS).float()
    spread = (2 / 9 / style.numel()) ** 0.5
    assert abs(float(style.mean()) - 2 / 3) < 4 * spread


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    for path, seed in zip(paths, (3, 4), strict=True):
        write_lora(path, unet_shapes(), "kohya", seed)
    first = lorabake.make(*paths, tmp_path / "a.safetensors")
    second = lorabake.make(*paths, tmp_path / "b.safetensors")
    assert first.layers == second.layers
    assert sha256(tmp_path / "a.safetensors") == sha256(tmp_path / "b.safetensors")
