"""What a replay must not do: compute in less precision, hold memory, lose what others changed."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from lorabake.errors import AttachError
from lorabake.runtime import Bundle, read

from . import pipes
from .naive_bundle import Spec, gates, one_of_each, write

MODES = ("fused", "hooks")


def bundle_for(pipe: Any, folder: Path, **options: Any) -> tuple[Bundle, list[Spec]]:
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    specs = one_of_each(name, getattr(pipe, name))
    roots = {name: getattr(pipe, name)}
    return read(write(folder / "b.safetensors", specs, roots, **options)), specs


def test_autocast_does_not_round_weights(tmp_path: Path) -> None:
    pipe = pipes.sd()
    bundle, specs = bundle_for(pipe, tmp_path)
    kept = {s.module: pipe.unet.get_submodule(s.module).weight.detach().clone() for s in specs}
    pipe.scheduler.set_timesteps(10)
    x, text = pipes.draw(1, 4, 8, 8, seed=0), pipes.draw(1, 5, 12, seed=1)
    outputs: list[torch.Tensor] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for mode in MODES:
            with bundle.attach(pipe, mode):  # type: ignore[arg-type] - a mode
                outputs.append(pipe.unet(x, pipe.scheduler.timesteps[6], text).sample)
                for s in specs if mode == "fused" else ():
                    g = gates(s, 6, 10)
                    wanted = kept[s.module] + g[0] * s.deltas[0] + g[1] * s.deltas[1]
                    found = pipe.unet.get_submodule(s.module).weight
                    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6), s.module
    fused, hooks = (out.float() for out in outputs)
    assert float((fused - hooks).abs().max() / fused.abs().max()) < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_held_after_detach(tmp_path: Path, mode: Any) -> None:
    """Also while the replay itself is kept for its report, and without the garbage collector."""
    pipe = pipes.sd()
    bundle, _ = bundle_for(pipe, tmp_path)
    gc.collect()
    gc.disable()
    try:
        with bundle.attach(pipe, mode) as replay:
            pipes.render(pipe, 3)
            held = [weakref.ref(p) for p in replay._patches]  # pyright: ignore[reportPrivateUsage]
        assert not [ref for ref in held if ref() is not None]
        assert len(replay.report()["progress"]) == 3
    finally:
        gc.enable()
    unet = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert unet() is None
    with pytest.raises(AttachError, match="this replay has been detached"):
        replay.__enter__()


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_that_is_replaced(tmp_path: Path, mode: Any) -> None:
    pipe = pipes.flux()
    bundle, specs = bundle_for(pipe, tmp_path)
    replay = bundle.attach(pipe, mode)
    pipes.render(pipe, 2)
    for s in specs:
        parent, _, name = s.module.rpartition(".")
        holder = pipe.transformer.get_submodule(parent)
        old: Any = getattr(holder, name)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None)
        setattr(holder, name, new)
    with pytest.raises(AttachError, match="another layer in its place"):
        pipes.render(pipe, 2)
    if mode == "fused":
        with pytest.warns(UserWarning, match="a layer or its weight was replaced"):
            replay.detach()
    else:
        replay.detach()
    bundle.attach(pipe, mode).detach()


def test_a_weight_that_is_replaced(tmp_path: Path) -> None:
    """It stays, all else goes back, and the pipeline can be used again."""
    pipe = pipes.flux()
    bundle, specs = bundle_for(pipe, tmp_path)
    clean = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    layer: Any = pipe.transformer.get_submodule(specs[3].module)
    replay = bundle.attach(pipe)
    pipes.render(pipe, 2)
    layer.weight = nn.Parameter(torch.ones_like(layer.weight))
    with pytest.warns(UserWarning, match="a layer or its weight was replaced"):
        replay.detach()
    for name, weight in pipe.transformer.state_dict().items():
        own = name == f"{specs[3].module}.weight"
        assert torch.equal(weight, torch.ones_like(weight) if own else clean[name])
    with bundle.attach(pipe):
        pipes.render(pipe, 2)


def test_a_part_cannot_be_loaded_over_it(tmp_path: Path) -> None:
    pipe = pipes.flux()
    bundle, _ = bundle_for(pipe, tmp_path)
    block = pipe.transformer.transformer_blocks[0]
    state = {name: torch.zeros_like(weight) for name, weight in block.state_dict().items()}
    with bundle.attach(pipe, "fused"):
        with pytest.raises(AttachError, match="base weights cannot be loaded"):
            block.load_state_dict(state)
        with pytest.raises(AttachError, match="weight: base weights cannot be loaded"):
            block.attn.to_q.load_state_dict({"weight": state["attn.to_q.weight"]}, strict=False)
    block.load_state_dict(state)
    assert not block.attn.to_q.weight.any()


def test_dora_needs_the_weight_itself(tmp_path: Path) -> None:
    pipe = pipes.flux()
    bundle, specs = bundle_for(pipe, tmp_path)
    config = LoraConfig(r=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    pipe.transformer.add_adapter(config, "dora")
    with pytest.raises(AttachError, match=r"DoRA adapter, which needs fused weights: .*to_q"):
        bundle.attach(pipe, "hooks")
    pipe.scheduler.set_timesteps(4)
    with bundle.attach(pipe) as replay:
        found = pipes.render(pipe, 1)
        assert {layer["mode"] for layer in replay.report()["layers"]} == {"fused"}
    for s in specs:
        g = gates(s, 0, 1)
        layer: Any = pipe.transformer.get_submodule(s.module)
        base = getattr(layer, "base_layer", layer)
        base.weight.data += g[0] * s.deltas[0] + g[1] * s.deltas[1]
    assert torch.allclose(pipes.render(pipe, 1), found, rtol=1e-4, atol=1e-5)


def test_weights_that_two_denoisers_share_are_left_alone(tmp_path: Path) -> None:
    pipe = pipes.flux()
    pipe.register_modules(transformer_2=pipes.flux().transformer)
    ours, other = (dict(t.named_modules()) for t in (pipe.transformer, pipe.transformer_2))
    ours["proj_out"].weight = other["proj_out"].weight
    roots = {"transformer": pipe.transformer, "transformer_2": pipe.transformer_2}
    specs = [Spec(name, "proj_out", (1, 1), {"scores": [1.0, 1.0]}) for name in roots]
    bundle = read(write(tmp_path / "b.safetensors", specs, roots))
    with bundle.attach(pipe) as replay:
        assert {row["why"] for row in replay.report()["layers"]} == {
            "a weight that several layers share"
        }
