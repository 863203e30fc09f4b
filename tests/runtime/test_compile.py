"""torch.compile: one graph over a whole image, whichever way and whenever it was compiled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters

from lorabake.runtime import Bundle, read

from . import pipes
from .naive_bundle import one_of_each, write

MODES = ("fused", "hooks")

pytestmark = [
    # torch itself, where it imports its compiler.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    # diffusers' Euler hands torch tensors to numpy 2 in the old way.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def whole(pipe: Any, backend: Any) -> None:
    """As `pipe.unet = torch.compile(pipe.unet)`."""
    pipe.transformer = torch.compile(pipe.transformer, backend=backend, fullgraph=True)


def in_place(pipe: Any, backend: Any) -> None:
    pipe.transformer.compile(backend=backend, fullgraph=True)


def regional(pipe: Any, backend: Any) -> None:
    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)


WAYS = {"whole": whole, "in place": in_place, "regional": regional}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def blocks(way: str) -> int:
    """Two of each kind where they are to share a graph."""
    return 2 if way == "regional" else 1


@pytest.fixture
def bundle(tmp_path: Path, blocks: int) -> Bundle:
    """Every layer selects, as in trained LoRAs, whose ranks may differ from layer to layer."""
    transformer = pipes.flux(blocks).transformer
    specs = one_of_each("transformer", transformer)
    for i, spec in enumerate(specs):
        spec.ranks = [(2, 3), (1, 2), (4, 3)][i % 3]
        if "gates" in spec.rule:
            spec.rule = {"scores": [1.0, 1.0]}
    return read(write(tmp_path / "b.safetensors", specs, {"transformer": transformer}))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def eager(bundle: Bundle, mode: Any, blocks: int) -> torch.Tensor:
    pipe = pipes.flux(blocks)
    with bundle.attach(pipe, mode):
        return pipes.render(pipe, 6)


@cache
def graphs(way: str, blocks: int) -> int:
    """How many there are without a bundle."""
    pipe, backend = pipes.flux(blocks), CompileCounter()
    WAYS[way](pipe, backend)
    pipes.render(pipe, 2)
    return backend.frame_count


@cache
def graphs_of_a_unet() -> int:
    """How many there are for two batch sizes without a bundle."""
    pipe, backend = unet(), CompileCounter()
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    pipes.render(pipe, 5)
    pipes.render(pipe, 5, batch=2)
    return backend.frame_count


def unet() -> Any:
    return pipes.sd(unet=pipes.one_level_unet())


@pytest.mark.parametrize("mode", MODES)
def test_compiled_before(bundle: Bundle, mode: Any, way: str, blocks: int) -> None:
    """Also when graphs from a run without the bundle are there already."""
    pipe, backend = pipes.flux(blocks), CompileCounter()
    WAYS[way](pipe, backend)
    plain = pipes.render(pipe, 6)
    without = backend.frame_count
    with bundle.attach(pipe, mode) as replay:
        found = pipes.render(pipe, 6)
        added = backend.frame_count - without
        assert torch.equal(pipes.render(pipe, 6), found)
        assert backend.frame_count - without == added
    assert added == (0 if mode == "fused" else without)
    assert not counters["graph_break"]
    assert len(replay.report()["progress"]) == 6
    assert error(found, eager(bundle, mode, blocks)) <= 1e-5
    assert error(plain, found) > 1e-2
    assert torch.equal(pipes.render(pipe, 6), plain)


@pytest.mark.parametrize("mode", MODES)
def test_compiled_after(bundle: Bundle, mode: Any, way: str, blocks: int) -> None:
    pipe, backend, without = pipes.flux(blocks), CompileCounter(), graphs(way, blocks)
    with bundle.attach(pipe, mode):
        torch.compiler.reset()
        WAYS[way](pipe, backend)
        found = pipes.render(pipe, 6)
        assert torch.equal(pipes.render(pipe, 6), found)
        # One, or for a regional one as many as diffusers has kinds of blocks.
        assert backend.frame_count == without
        assert way == "regional" or backend.frame_count == 1
    assert not counters["graph_break"]
    assert error(found, eager(bundle, mode, blocks)) <= 1e-5
    assert error(pipes.render(pipe, 6), pipes.render(pipes.flux(blocks), 6)) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_a_unet(tmp_path: Path, mode: Any) -> None:
    """Convolutions as well; another image size costs what it costs without a bundle."""
    pipe = unet()
    bundle = read(
        write(tmp_path / "b.safetensors", one_of_each("unet", pipe.unet), {"unet": pipe.unet})
    )
    with bundle.attach(pipe, mode):
        expected = pipes.render(pipe, 5)
    backend = CompileCounter()
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    with bundle.attach(pipe, mode):
        assert error(pipes.render(pipe, 5), expected) <= 1e-5
        assert backend.frame_count == 1
        pipes.render(pipe, 5, batch=2)
        pipes.render(pipe, 5)
    assert not counters["graph_break"]
    torch.compiler.reset()  # what it has learned about the sizes that change
    assert backend.frame_count == graphs_of_a_unet()


@pytest.mark.parametrize("way", ["regional"], indirect=True)
@pytest.mark.parametrize("mode", MODES)
def test_inductor(bundle: Bundle, mode: Any, blocks: int) -> None:
    """The real compiler: weights and slots that change in place are not constants to it."""
    pipe, backend = pipes.flux(blocks), CompileCounterWithBackend("inductor")
    with bundle.attach(pipe, mode):
        pipe.transformer.single_transformer_blocks[-1].compile(backend=backend, fullgraph=True)
        found = pipes.render(pipe, 6)
    assert backend.frame_count == 1
    assert error(found, eager(bundle, mode, blocks)) <= 1e-5
