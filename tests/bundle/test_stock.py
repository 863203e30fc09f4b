"""Stock diffusers, without lorabake, loads a bundle as the plain sum of its two updates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

import lorabake
from lorabake import lora
from lorabake.bundle import complete, strengthen, with_columns

from .. import tiny
from ..oracle import Dense, write_lora
from .baked import baked, drawn

STRENGTHS = (0.7, 3.0)
PREFERRED = {"sd15": ("kohya", "peft"), "sdxl": ("peft", "peft"), "flux": ("peft", "peft")}


class Messages(logging.Handler):
    """What a library logs."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def messages() -> Iterator[list[str]]:
    handler = Messages()
    diffusers_logging.add_handler(handler)
    yield handler.texts
    diffusers_logging.remove_handler(handler)


def summed(loras: list[Dense]) -> dict[str, Tensor]:
    """The update of every layer that one of the LoRAs has."""
    total: dict[str, Tensor] = {}
    for strength, dense in zip(STRENGTHS, loras, strict=True):
        for name, delta in dense.delta.items():
            total[name] = total.get(name, 0) + strength * delta
    return total


def loaded(module: Any) -> Tensor | None:
    """The update that PEFT adds to a layer, from its own factors and scaling."""
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.scaling
    up, down = (f[name].weight.detach().double().flatten(1) for f in (module.lora_B, module.lora_A))
    return (module.scaling[name] * up @ down).reshape(module.base_layer.weight.shape)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("build", [tiny.sd15, tiny.sdxl, tiny.flux])
def test_it_is_the_direct_merge(
    build: Callable[[], tuple[Any, tiny.Inputs]], tmp_path: Path, messages: list[str]
) -> None:
    pipe, inputs = build()
    shapes = tiny.shapes(pipe)
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    dialects = PREFERRED[build.__name__]
    loras = [write_lora(paths[i], shapes, dialects[i], seed=i) for i in (0, 1)]
    lorabake.make(
        *paths, tmp_path / "bundle.safetensors",
        content_strength=STRENGTHS[0], style_strength=STRENGTHS[1],
    )  # fmt: skip
    messages.clear()
    pipe.load_lora_weights(str(tmp_path), weight_name="bundle.safetensors")
    assert messages == []

    check_merged(build, pipe, inputs, summed(loras))


def check_merged(
    build: Callable[[], tuple[Any, tiny.Inputs]],
    pipe: Any,
    inputs: tiny.Inputs,
    updates: dict[str, Tensor],
) -> None:
    """Whether the pipeline has these updates and no others, layer by layer and in its output."""
    merged = build()[0].to(torch.float64)
    targets, adapted = tiny.layers(merged), tiny.layers(pipe)
    for name in tiny.shapes(merged):
        wanted, found = updates.get(name), loaded(adapted[name])
        assert (wanted is None) == (found is None), name
        if wanted is not None and found is not None:
            assert error(found, wanted) <= 1e-6, name
            targets[name].weight.data += wanted
    plain = tiny.output(build()[0], inputs)
    found, wanted = tiny.output(pipe, inputs), tiny.output(merged, inputs)
    assert error(plain, wanted) > 0.01
    assert error(found, wanted) <= 1e-6


@pytest.mark.parametrize("build", [tiny.sd15, tiny.sdxl, tiny.flux])
def test_it_is_the_exact_ziplora(
    build: Callable[[], tuple[Any, tiny.Inputs]], tmp_path: Path, messages: list[str]
) -> None:
    """Column j of each update is multiplied by m_j, and the rows that hold m add nothing."""
    pipe, inputs = build()
    shapes = tiny.shapes(pipe)
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    loras = [write_lora(path, shapes, "peft", seed=i) for i, path in enumerate(paths)]
    pairs = strengthen(complete(lora.pair(*lora.read_both(*paths))), STRENGTHS)
    coefficients = drawn(pairs)
    weighted = with_columns(pairs, coefficients, torch.float32)
    baked(tmp_path / "bundle.safetensors", weighted, family=build.__name__)
    messages.clear()
    pipe.load_lora_weights(str(tmp_path), weight_name="bundle.safetensors")
    assert messages == []

    for pair, both in zip(pairs, coefficients, strict=True):
        for dense, m in zip(loras, both or (), strict=both is not None):
            delta = dense.delta[str(pair.name)]
            for j, number in enumerate(m.tolist()):
                # Tiny ones are kept away from 0.
                least = -(2**-10) if number < 0 else 2**-10
                delta[:, j] *= number if abs(number) > 2**-10 else least
    assert sum(both is not None for both in coefficients) > len(pairs) / 2
    check_merged(build, pipe, inputs, summed(loras))


@pytest.mark.parametrize("kinds", [("q_proj", "v_proj"), ("q_proj", "k_proj", "fc1", "fc2")])
@pytest.mark.parametrize("build", [tiny.sd15, tiny.sdxl, tiny.flux])
def test_text_encoders_without_output_projection(
    build: Callable[[], tuple[Any, tiny.Inputs]], kinds: tuple[str, ...], tmp_path: Path,
    messages: list[str],
) -> None:  # fmt: skip
    """Stock diffusers does not find their attention layers by itself, or only some of them."""
    pipe, _ = build()
    shapes = {
        name: shape
        for name, shape in tiny.shapes(pipe).items()
        if name.endswith(kinds if name.startswith("text_encoder") else ("to_q", "to_k"))
    }
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    loras = [write_lora(path, shapes, "peft", seed=5 + i) for i, path in enumerate(paths)]
    lorabake.make(*paths, tmp_path / "bundle.safetensors")
    messages.clear()
    pipe.load_lora_weights(str(tmp_path), weight_name="bundle.safetensors")
    assert messages == []
    adapted = tiny.layers(pipe)
    for name in shapes:
        parts = [dense.delta[name] for dense in loras if name in dense.delta]
        found = loaded(adapted[name])
        assert bool(parts) == (found is not None), name
        if found is not None:
            assert error(found, torch.stack(parts).sum(0)) <= 1e-6, name
