"""Layers side by side: in order, with progress, and torch's settings as they were."""

from __future__ import annotations

import time

import pytest
import torch

from lorabake.lora.parallel import each
from lorabake.lora.topk import Magnitude, magnitude
from lorabake.lora.types import LowRank

CPU = torch.device("cpu")


def test_results_keep_their_order_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    assert each(lambda x: x * x, range(20), CPU, lambda *at: told.append(at)) == [
        x * x for x in range(20)
    ]
    assert told == [(i + 1, 20) for i in range(20)]


def test_torch_s_settings_are_put_back_also_after_an_error() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    inside: list[tuple[int, str]] = []

    def work(x: int) -> float:
        inside.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return 1 / x

    with pytest.raises(ZeroDivisionError):
        each(work, [2, 1, 0], CPU, lambda *_: None)
    assert set(inside) == {(1, "highest")}
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_an_interruption_drops_the_rest() -> None:
    done: list[int] = []

    def work(x: int) -> None:
        done.append(x)
        time.sleep(0.001)  # or the workers may be through before the first result is looked at

    def stop(at: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each(work, range(10_000), CPU, stop)
    assert len(done) < 10_000


def test_every_number_of_threads_gives_the_same_bits() -> None:
    dice = torch.Generator().manual_seed(0)
    layers = [
        LowRank(torch.randn(32, 700, generator=dice), torch.randn(500, 32, generator=dice))
        for _ in range(6)
    ]
    threads = torch.get_num_threads()
    found: list[list[Magnitude]] = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(each(lambda layer: magnitude(layer, 1024), layers, CPU, lambda *_: None))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
