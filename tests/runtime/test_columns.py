"""Column coefficients as a reader meets them: read out, divided out, and never applied twice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorabake.errors import BundleError, OverrideError
from lorabake.runtime import read

from . import pipes
from .naive_bundle import Spec, write

BOTH = {"gates": [1.0, 1.0]}
ROOT = nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 4), nn.Conv2d(3, 7, (3, 2)))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def specs() -> list[Spec]:
    return [
        Spec("unet", "0", (2, 3), BOTH, columns=True),
        Spec("unet", "1", (4, 0), BOTH),
        Spec("unet", "2", (1, 4), BOTH, columns=True),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "b.safetensors", specs(), {"unet": ROOT})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_coefficients_and_originals(tmp_path: Path, dtype: torch.dtype) -> None:
    layers = specs()
    bundle = read(write(tmp_path / "b", layers, {"unet": ROOT}, dtype=dtype), verify=True)
    assert bundle.manifest.format == (1, 1)
    found = bundle.coefficients()
    assert list(found) == ["unet.0", "unet.2"]
    for layer, spec in zip(bundle.manifest.layers, layers, strict=True):
        assert layer.columns == spec.columns
        for i, rank in enumerate(spec.ranks):
            down, up = bundle.original(layer, i)
            assert down.dtype == up.dtype == torch.float32
            assert down.shape[0] == up.shape[1] == rank
            before = (up.flatten(1) @ down.flatten(1)).reshape(spec.deltas[i].shape)
            if not spec.columns:
                assert torch.equal(before, spec.deltas[i])
                continue
            m = found[str(layer)][i]
            assert m.dtype == torch.float32
            assert torch.equal(m, spec.coefficients[i])
            assert error(before, spec.plain[i]) <= torch.finfo(dtype).eps
            assert error(spec.deltas[i], spec.plain[i]) > 0.1
            down, up = bundle.factors(layer, i)
            stored = up.float().flatten(1) @ down.float().flatten(1)
            assert torch.equal(stored.reshape(spec.deltas[i].shape), spec.deltas[i])
    found["unet.0"][0].zero_()  # the caller's own
    assert bundle.coefficients()["unet.0"][0].all()


def test_a_bundle_without_coefficients(tmp_path: Path) -> None:
    plain = [Spec("unet", "0", (2, 3), BOTH)]
    bundle = read(write(tmp_path / "b", plain, {"unet": ROOT}, method="direct"))
    assert bundle.manifest.format == (1, 0)
    with pytest.raises(OverrideError, match="the method direct has no column coefficients"):
        bundle.coefficients()


Edit = Callable[[dict[str, Tensor], dict[str, Any]], object]


def spoil(path: Path, edit: Edit) -> None:
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["lorabake"])
    tensors = load_file(path)
    edit(tensors, manifest)
    save_file(tensors, path, {"lorabake": json.dumps(manifest)})


def set_to(key: str, place: tuple[int, ...], value: float) -> Edit:
    return lambda tensors, _: tensors[key].__setitem__(place, value)


def ranks(layer: int, to: list[int]) -> Edit:
    return lambda _, manifest: manifest["layers"][layer].update(ranks=to)


def marked(layer: int) -> Edit:
    return lambda _, manifest: manifest["layers"][layer].update(columns=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ranks(0, [2, 4]), r"unet.0 .*too small for the ranks \[2, 4\] and column coefficients"),
        (ranks(0, [3, 4]), r"unet.0 .*too small for the ranks \[3, 4\] and column coefficients"),
        (ranks(0, [0, 5]), "greater than 0 for both sources, to have columns"),
        (marked(1), "greater than 0 for both sources, to have columns"),
    ],
)
def test_what_a_reader_refuses(path: Path, edit: Edit, message: str) -> None:
    spoil(path, edit)
    with pytest.raises(BundleError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_to("layer0.lora_A.weight", (5, 2), 0.0), "unet.0 has .* 0 or not finite"),
        (set_to("layer0.lora_A.weight", (6, 5), float("nan")), "unet.0 has .* 0 or not finite"),
        (set_to("layer2.lora_A.weight", (6, 0, 1, 1), float("inf")), "unet.2 has .* not finite"),
        (set_to("layer2.lora_A.weight", (5, 2, 2, 0), 0.0), "unet.2 has .* 0 or not finite"),
        (set_to("layer2.lora_A.weight", (5, 2, 2, 0), 3.0), "unet.2 has .* within a kernel"),
    ],
)
def test_rows_that_are_no_coefficients(path: Path, edit: Edit, message: str) -> None:
    spoil(path, edit)
    bundle = read(path)
    with pytest.raises(BundleError, match=message) as caught:
        bundle.coefficients()
    assert str(path) in str(caught.value)
    layer = next(x for x in bundle.manifest.layers if str(x) in str(caught.value))
    with pytest.raises(BundleError, match=message):
        bundle.original(layer, 0)


@pytest.mark.parametrize("mode", ["fused", "hooks"])
@pytest.mark.parametrize("make", [pipes.sd, pipes.flux])
def test_replay_is_the_dense_sum(make: Any, mode: Any, tmp_path: Path) -> None:
    """W0 + ΔW_c·diag(m_c) + w_s·ΔW_s·diag(m_s), w_s being the style's strength."""
    pipe = make()
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    root: nn.Module = getattr(pipe, name)
    layers = [
        Spec(name, path, (2, 3) if i % 5 else (3, 0), BOTH, columns=i % 5 > 0)
        for i, (path, module) in enumerate(root.named_modules())
        if isinstance(module, nn.Linear) or path.rpartition(".")[2] in ("conv1", "conv2")
    ]
    bundle = read(write(tmp_path / "b", layers, {name: root}, size=0.02))
    for w_s in (1.0, 0.4):
        merged: Any = copy.deepcopy(root)
        for spec in layers:
            weight = merged.get_submodule(spec.module).weight
            deltas = [d.double() for d in spec.deltas]
            for delta, plain, m in zip(deltas, spec.plain, spec.coefficients, strict=False):
                for j in range(len(m)):
                    delta[:, j] = plain[:, j].double() * float(m[j])
            weight.data = (weight.double() + deltas[0] + w_s * deltas[1]).float()
        dense = copy.copy(pipe)
        setattr(dense, name, merged)
        wanted = pipes.render(dense, 3)
        with bundle.attach(pipe, mode, style_strength=w_s):
            assert error(pipes.render(pipe, 3), wanted) <= 1e-5
    assert error(pipes.render(pipe, 3), wanted) > 1e-2
