"""Where a function is compiled, and what happens where that is not possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lorabake.runtime.compiled import fastest

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_cpu_runs_the_function_itself() -> None:
    assert fastest(torch.sin, CPU) is torch.sin


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def compile_(function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def fail(*args: Tensor) -> Tensor:
            tried.append("compiled")
            raise RuntimeError("no Triton here")

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    x = torch.ones(3)
    for _ in range(2):
        assert torch.equal(fastest(twice, CUDA)(x), 2 * x)
    assert tried == ["compiled"]


def twice(x: Tensor) -> Tensor:
    return 2 * x


def test_a_lack_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def fail(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(torch.OutOfMemoryError):
        fastest(thrice, CUDA)(torch.ones(3))


def thrice(x: Tensor) -> Tensor:
    return 3 * x
