"""Attach refuses what does not fit and leaves no trace; detach puts everything back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lorabake.errors import AttachError, BundleError, OverrideError
from lorabake.runtime import Bundle, read
from lorabake.runtime.fused import Fused
from lorabake.runtime.hooked import Hooked

from . import pipes
from .naive_bundle import Spec, gates, layer_of, one_of_each, write

MODES = ("fused", "hooks")
QUERY = "text_model.encoder.layers.1.self_attn.q_proj"


@pytest.fixture
def pipe() -> Any:
    return pipes.sd(text_encoder=pipes.clip())


def bundle_for(pipe: Any, folder: Path, **edit: Any) -> tuple[Bundle, list[Spec]]:
    specs = [Spec("text_encoder", QUERY, (2, 3), {"gates": [1.0, 0.5]})]
    specs += one_of_each("unet", pipe.unet)
    roots = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return read(write(folder / "b.safetensors", specs, roots, **edit)), specs


def state(pipe: Any) -> dict[str, Any]:
    """Bytes and addresses of all parameters and buffers, and all that hangs on the modules."""
    found: dict[str, Any] = {}
    for name in ("unet", "text_encoder"):
        root: nn.Module = getattr(pipe, name)
        for key, tensor in [*root.named_parameters(), *root.named_buffers()]:
            data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[f"{name}.{key}"] = (data, tensor.data_ptr(), tensor.requires_grad, tensor.dtype)
        for key, module in root.named_modules():
            hooks = {k: list(v) for k, v in vars(module).items() if k.endswith(("hooks", "kwargs"))}
            found[f"{name}.{key} is"] = (id(module), type(module), sorted(vars(module)), hooks)
    return found


@pytest.mark.parametrize("mode", [*MODES, "auto"])
def test_detach_leaves_no_trace(pipe: Any, tmp_path: Path, mode: Any) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)
    for _ in range(2):
        with bundle.attach(pipe, mode) as replay:
            assert state(pipe) != before
            pipes.render(pipe, 3)
        assert state(pipe) == before
        replay.detach()
        assert state(pipe) == before


@pytest.mark.parametrize("mode", MODES)
def test_detach_after_an_exception(pipe: Any, tmp_path: Path, mode: Any) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)

    def interrupt(_: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        if i == 2:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt), bundle.attach(pipe, mode):
        pipes.render(pipe, 5, callback_on_step_end=interrupt)
    assert state(pipe) == before


def test_attaching_twice_is_refused(pipe: Any, tmp_path: Path) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)
    with bundle.attach(pipe, "fused"):
        during = state(pipe)
        sharing_text = pipes.sd(text_encoder=pipe.text_encoder)
        sharing_unet = pipes.sd(text_encoder=pipes.clip(), unet=pipe.unet)
        for other in (pipe, sharing_text, sharing_unet):
            for mode in ("auto", *MODES):
                with pytest.raises(AttachError, match=r"attached to this .* already"):
                    bundle.attach(other, mode)  # type: ignore[arg-type] - a mode
        assert state(pipe) == during
    assert state(pipe) == before


@pytest.mark.parametrize(("method", "count"), [("_apply", 2), ("__init__", 9)])
@pytest.mark.parametrize("mode", MODES)
def test_a_failure_half_way_leaves_no_trace(
    pipe: Any, tmp_path: Path, mode: Any, method: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)
    kind = Fused if mode == "fused" else Hooked
    real, calls = getattr(kind, method), iter(range(count))

    def failing(self: Any, *args: Any) -> None:
        if next(calls, None) is None:
            raise MemoryError
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, failing)
        with pytest.raises(MemoryError):
            bundle.attach(pipe, mode)
    assert state(pipe) == before
    bundle.attach(pipe, mode).detach()
    assert state(pipe) == before


@pytest.mark.parametrize("mode", MODES)
def test_text_encoder_layers_act_from_the_start(pipe: Any, tmp_path: Path, mode: Any) -> None:
    bundle, specs = bundle_for(pipe, tmp_path)
    ids = torch.tensor([[0, 5, 7, 1]])
    with torch.no_grad():
        plain = pipe.text_encoder(ids)[0]
        with bundle.attach(pipe, mode, content_strength=2.0):
            found = pipe.text_encoder(ids)[0]
        reference = pipes.clip()
        layer_of(reference, QUERY).weight += 2 * specs[0].deltas[0] + 0.5 * specs[0].deltas[1]
        expected: Any = reference(ids)[0]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, expected, rtol=1e-2)


@pytest.mark.parametrize("spelling", [QUERY, QUERY.removeprefix("text_model.")])
def test_both_spellings_of_a_text_encoder(pipe: Any, tmp_path: Path, spelling: str) -> None:
    specs = [Spec("text_encoder", spelling, (2, 3), {"gates": [1.0, 1.0]})]
    bundle = read(write(tmp_path / "b.safetensors", specs, {"text_encoder": pipe.text_encoder}))
    before = state(pipe)
    with bundle.attach(pipe):
        assert state(pipe) != before


def test_auto_takes_hooks_for_shared_weights(pipe: Any, tmp_path: Path) -> None:
    bundle, specs = bundle_for(pipe, tmp_path)
    layers = [layer_of(pipe.unet, s.module) for s in specs[1:] if ".to_" in s.module]
    first, second = (m for m in layers[:2])
    second.weight = first.weight
    before = state(pipe)
    with pytest.raises(AttachError, match=r"cannot be changed in place: unet.*auto or hooks"):
        bundle.attach(pipe, "fused")
    with bundle.attach(pipe) as replay:
        modes = [layer["mode"] for layer in replay.report()["layers"]]
        assert modes.count("hooks") == 2
        assert modes.count("fused") == len(specs) - 2
        pipes.render(pipe, 2)
    assert state(pipe) == before


def test_report(pipe: Any, tmp_path: Path) -> None:
    bundle, specs = bundle_for(pipe, tmp_path)
    replay = bundle.attach(pipe, style_strength=0.5)
    pipes.render(pipe, 4)
    replay.detach()
    report = json.loads(json.dumps(replay.report()))
    assert report["progress"] == [0, 0.25, 0.5, 0.75]
    assert report["pipeline"] == "StableDiffusionPipeline"
    assert (report["method"], report["bundle"]) == ("klora", str(bundle.path))
    assert len(report["layers"]) == len(specs)
    assert report["layers"][0] == {
        "component": "text_encoder",
        "module": QUERY,
        "mode": "fused",
        "why": "",
        "gates": [[1.0, 0.25]] * 4,
        "decisions": [],
    }
    assert report["guidance"] == []
    for layer, row in zip(bundle.manifest.layers, report["layers"], strict=True):
        if 0 not in layer.ranks and (choices := bundle.select(layer, 4))[0] is not None:
            assert row["gates"] == [[1.0, 0.0] if c == 0 else [0.0, 0.5] for c in choices]


def test_another_model(pipe: Any, tmp_path: Path) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    wide = pipes.sd(text_encoder=pipes.clip(), unet=pipes.tiny_unet(cross_attention_dim=20))
    xl = pipes.sdxl(cross_attention_dim=20)
    xl.text_encoder = pipes.clip()
    flux = pipes.flux()
    flux.text_encoder = pipes.clip()
    for other, message in (
        (wide, r"2 of \d+ layers do not fit: unet.*to_k \(\[12, 20\] there, \[12, 12\] in the"),
        (xl, "StableDiffusionXLPipeline with UNet2DConditionModel, which looks like sdxl"),
    ):
        before = state(other)
        with pytest.raises(AttachError, match=message) as caught:
            bundle.attach(other)
        assert "for sd15 (some/base)" in str(caught.value)
        assert state(other) == before
    with pytest.raises(AttachError, match=r"layers of unet, which FluxPipeline lacks.*like flux"):
        bundle.attach(flux)
    pipe.text_encoder = None
    with pytest.raises(AttachError, match=r"layers of text_encoder, which .* lacks"):
        bundle.attach(pipe)


def test_a_module_of_another_kind(pipe: Any, tmp_path: Path) -> None:
    trained = nn.Module()
    trained.odd = nn.Linear(4, 4)
    spec = Spec("unet", "odd", (1, 1), {"gates": [1.0, 1.0]})
    bundle = read(write(tmp_path / "b.safetensors", [spec], {"unet": trained}))
    with pytest.raises(AttachError, match=r"unet.odd \(not there\)"):
        bundle.attach(pipe)
    pipe.unet.odd = nn.Embedding(4, 4)
    with pytest.raises(AttachError, match="Embedding, neither linear nor convolutional"):
        bundle.attach(pipe)
    pipe.unet.odd = nn.Conv2d(4, 4, 1)
    with pytest.raises(AttachError, match=r"\[4, 4, 1, 1\] there, \[4, 4\] in the bundle"):
        bundle.attach(pipe)
    pipe.unet.odd = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(AttachError, match="a convolution in groups"):
        bundle.attach(pipe)


def test_not_a_pipeline(pipe: Any, tmp_path: Path) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    with pytest.raises(AttachError, match="Linear has no unet or transformer"):
        bundle.attach(nn.Linear(1, 1))
    pipe.scheduler = None
    with pytest.raises(AttachError, match="StableDiffusionPipeline has no scheduler"):
        bundle.attach(pipe)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gama": 1.0}, "gama: there is no such override. Did you mean gamma?"),
        ({"style_strenght": 1.0}, "Did you mean style_strength?"),
        ({"gamma": 0}, "gamma: 0.0 is out of range. Give a number above 0"),
        ({"gamma": float("nan")}, "gamma: nan is out of range"),
        ({"gamma": "much"}, "gamma: 'much' is out of range"),
        ({"beta": None}, "beta: None is out of range"),
        ({"beta": True}, "beta: True is out of range"),
        ({"alpha": -1.0, "pattern": "modulo"}, "alpha: -1.0 is out of range"),
        ({"pattern": "modulus"}, "Did you mean modulo?"),
        ({"pattern": 3}, "Choose one of linear, modulo"),
        ({"content_strength": float("inf")}, "content_strength: inf is out of range"),
        ({"style_strength": 1e308}, "1e+308 is out of range. Give a number from -10000 to 10000"),
        ({"mode": "fuse"}, "Did you mean fused?"),
    ],
)
def test_overrides_out_of_range(
    pipe: Any, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)
    with pytest.raises(OverrideError) as caught:
        bundle.attach(pipe, **given)
    assert message in str(caught.value)
    assert state(pipe) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("mode", MODES)
def test_weights_that_are_not_finite(pipe: Any, tmp_path: Path, mode: Any, value: float) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    tensors = load_file(bundle.path)
    tensors["layer1.lora_B.weight"][-1, 0] = value
    with safe_open(bundle.path, "pt") as file:
        save_file(tensors, tmp_path / "odd.safetensors", file.metadata())
    before = state(pipe)
    with pytest.raises(BundleError, match=r"NaN or infinity: layer1.lora_B.weight"):
        read(tmp_path / "odd.safetensors").attach(pipe, mode)
    assert state(pipe) == before


def test_a_plan_without_a_scale_has_none_to_change(pipe: Any, tmp_path: Path) -> None:
    spec = Spec("unet", "conv_in", (1, 1), {"select": "01"})
    bundle = read(write(tmp_path / "b.safetensors", [spec], {"unet": pipe.unet}, method="random"))
    with pytest.raises(OverrideError, match="gamma: a bundle of the method random has no scale"):
        bundle.attach(pipe, gamma=1.0)
    bundle.attach(pipe, content_strength=0.5).detach()


def test_a_foreign_timestep_is_an_error(pipe: Any, tmp_path: Path) -> None:
    bundle, _ = bundle_for(pipe, tmp_path)
    before = state(pipe)
    pipe.scheduler.set_timesteps(10)
    x, text = pipes.draw(1, 4, 8, 8, seed=0), pipes.draw(1, 5, 12, seed=1)
    with bundle.attach(pipe), pytest.raises(AttachError, match="called at timestep 500, which is"):
        pipe.unet(x, 500, text)
    assert state(pipe) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", ["adapter", "bundle"])
def test_an_adapter_of_peft_keeps_working(pipe: Any, tmp_path: Path, mode: Any, first: str) -> None:
    """Loaded before the bundle, or while it is attached."""
    bundle, specs = bundle_for(pipe, tmp_path)

    def adapt(unet: Any) -> None:
        torch.manual_seed(7)
        targets = ["to_q", "to_out.0"]
        unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "other")

    reference: Any = pipes.tiny_unet()
    for s in specs[1:]:
        g = gates(s, 6, 10)
        layer_of(reference, s.module).weight.data += g[0] * s.deltas[0] + g[1] * s.deltas[1]
    x, text = pipes.draw(1, 4, 8, 8, seed=0), pipes.draw(1, 5, 12, seed=1)
    pipe.scheduler.set_timesteps(10)
    t = pipe.scheduler.timesteps[6]
    if first == "adapter":
        adapt(pipe.unet)
    before = state(pipe)
    with torch.no_grad(), bundle.attach(pipe, mode):
        if first == "bundle":
            adapt(pipe.unet)
        found = pipe.unet(x, t, text).sample
        without: Any = reference(x, t, text).sample
        adapt(reference)
        expected: Any = reference(x, t, text).sample
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(without, expected, rtol=1e-2)
    if first == "adapter":
        assert state(pipe) == before
    else:
        pipe.unet.delete_adapters("other")
        clean = pipes.tiny_unet().state_dict()
        for name, weight in pipe.unet.state_dict().items():
            assert torch.equal(weight, clean[name.replace(".base_layer", "")])
