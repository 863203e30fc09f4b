"""torch.compile: one graph over a whole image, whichever way and whenever it was compiled."""

from __future__ import annotations

from collections.abc import Iterator
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
    pipe, backend, without = pipes.flux(blocks), CompileCounter(), CompileCounter()
    plain = pipes.flux(blocks)
    WAYS[way](plain, without)
    pipes.render(plain, 2)
    with bundle.attach(pipe, mode):
        torch.compiler.reset()
        WAYS[way](pipe, backend)
        found = pipes.render(pipe, 6)
        assert torch.equal(pipes.render(pipe, 6), found)
        # One, or for a regional one as many as diffusers has kinds of blocks.
        assert backend.frame_count == without.frame_count
        assert way == "regional" or backend.frame_count == 1
    assert not counters["graph_break"]
    assert error(found, eager(bundle, mode, blocks)) <= 1e-5
    assert error(pipes.render(pipe, 6), pipes.render(pipes.flux(blocks), 6)) <= 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_a_unet(tmp_path: Path, mode: Any) -> None:
    """Convolutions as well; another image size costs what it costs without a bundle."""
    pipe, plain = pipes.sd(), pipes.sd()
    bundle = read(
        write(tmp_path / "b.safetensors", one_of_each("unet", pipe.unet), {"unet": pipe.unet})
    )
    with bundle.attach(pipe, mode):
        expected = pipes.render(pipe, 5)
    backend, without = CompileCounter(), CompileCounter()
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    plain.unet = torch.compile(plain.unet, backend=without, fullgraph=True)
    with bundle.attach(pipe, mode):
        assert error(pipes.render(pipe, 5), expected) <= 1e-5
        assert backend.frame_count == 1
        pipes.render(pipe, 5, batch=2)
        pipes.render(pipe, 5)
    torch.compiler.reset()  # what it has learned about the sizes that change
    pipes.render(plain, 5)
    pipes.render(plain, 5, batch=2)
    assert backend.frame_count == without.frame_count
    assert not counters["graph_break"]


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
