"""What is left of a LoRA in part, against pictures painted and compared by hand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import lorabake
from lorabake.cli import cli
from lorabake.compare import robustness
from lorabake.errors import OverrideError
from lorabake.pipelines import encoders, load
from lorabake.pipelines.generate import gated
from lorabake.pipelines.render import together

CPU = torch.device("cpu")
CALL: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def bundle(world: Path, tmp_path_factory: pytest.TempPathFactory) -> lorabake.Bundle:
    path = tmp_path_factory.mktemp("robustness") / "b.safetensors"
    for name in ("cat", "ink"):
        tensors = load_file(world / f"{name}.safetensors")
        kept = {key: value for key, value in tensors.items() if key.startswith("unet.")}
        words = {"modelspec.trigger_phrase": {"cat": "cat", "ink": "ink style"}[name]}
        save_file(kept, path.with_name(f"{name}.safetensors"), words)
    lorabake.make(path.with_name("cat.safetensors"), path.with_name("ink.safetensors"), path)
    return lorabake.load(path)


def _measure(bundle: lorabake.Bundle, world: Path, **given: Any) -> Any:
    names = {"dino": world / "dino", "csd": world / "csd"}
    return robustness(bundle, world / "model", encoders=names, seeds=2, device=CPU, **CALL, **given)


def _seen(pipe: Any, world: Path) -> Tensor:
    pixels = torch.from_numpy(together(pipe, "cat", range(2), **CALL)).permute(0, 3, 1, 2)
    return functional.normalize(encoders.load(world / "dino", device=CPU)(pixels), dim=1)


def _applied(bundle: lorabake.Bundle) -> dict[str, Tensor]:
    """Weights at one call, by hand: the content's ΔW on layers whose coin fell on content."""
    deltas: dict[str, Tensor] = {}
    for layer in bundle.manifest.layers:
        assert layer.component == "unet"
        coin = Random(str(layer))
        thrown = [coin.choice((0, 1)) for _ in range(50)]
        down, up = bundle.factors(layer, 0)
        deltas[layer.module] = torch.stack(
            [(1 - thrown[25 * step]) * (up @ down) for step in (0, 1)]
        )
    return deltas


def test_effects_are_those_of_pictures_painted_by_hand(
    bundle: lorabake.Bundle, world: Path
) -> None:
    content, style = _measure(bundle, world)
    pipe = load(world / "model", device=CPU)
    base = _seen(pipe, world)
    with gated(bundle, (1.0, 0.0)).attach(pipe):
        whole = _seen(pipe, world)
    with gated(bundle, (0.5, 0.0)).attach(pipe):
        weak = _seen(pipe, world)
    deltas, calls = _applied(bundle), [0]
    modules = {name: pipe.unet.get_submodule(name) for name in deltas}
    kept = {name: module.weight.detach().clone() for name, module in modules.items()}

    def before(unet: object, args: object) -> None:
        step = calls[0]
        for name, module in modules.items():
            module.weight.data = kept[name] + deltas[name][step].view_as(kept[name])
        calls[0] += 1

    hook = pipe.unet.register_forward_pre_hook(before)
    half = _seen(pipe, world)
    hook.remove()
    near = (base * whole).sum(1)
    for told, other in ((content.half_of_layers, half), (content.half_strength, weak)):
        wanted = (((other * whole).sum(1) - near) / (1 - near)).mean()
        assert told == pytest.approx(float(wanted), abs=2e-3)
    assert content.likeness == pytest.approx(float(near.mean()), abs=1e-5)
    assert (content.prompt, style.prompt) == ("cat", "ink style")
    assert content.robust == (content.half_of_layers >= 0.5)


def test_the_command_tells_both(bundle: lorabake.Bundle, world: Path) -> None:
    names = ["--dino", str(world / "dino"), "--csd", str(world / "csd")]
    told = ["--robustness", "--base", str(world / "model"), "--seeds", "1", "--steps", "2"]
    page = CliRunner().invoke(cli, ["inspect", str(bundle.path), *told, *names, "-q"])
    assert page.exit_code == 0, page.output
    assert "of its effect on half of the layers" in page.output
    found = CliRunner().invoke(cli, ["inspect", str(bundle.path), *told, *names, "-q", "--json"])
    assert [one["role"] for one in json.loads(found.stdout)["robustness"]] == ["content", "style"]


def test_what_cannot_be_measured_is_said(
    bundle: lorabake.Bundle, world: Path, tmp_path: Path
) -> None:
    bare = CliRunner().invoke(cli, ["inspect", str(bundle.path), "--robustness"])
    assert bare.exit_code == 2
    assert "--base" in bare.output
    lorabake.make(
        world / "cat.safetensors", world / "ink.safetensors", tmp_path / "zip.safetensors",
        method="ziplora-layerwise", base=world / "model", content_prompt="cat",
        style_prompt="ink", references=1, reference_steps=1, draws=1,
    )  # fmt: skip
    with pytest.raises(OverrideError, match="weighted column by column"):
        _measure(lorabake.load(tmp_path / "zip.safetensors"), world)
