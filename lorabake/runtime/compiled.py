"""torch.compile: where it helps replay, and what it must forget when layers gain or lose a hook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from .caller import uncompiled


def forget_graphs(pipe: Any, roots: Mapping[str, nn.Module]) -> None:  # noqa: ANN401 - any pipeline
    """Drop compiled graphs if one of these components has any; the next call compiles anew.

    A graph has its hooks traced into it, and by default nobody looks whether they have changed.
    """
    if "torch._dynamo" in sys.modules and any(_compiled(pipe, *root) for root in roots.items()):
        torch.compiler.reset()


def _compiled(pipe: Any, name: str, root: nn.Module) -> bool:  # noqa: ANN401 - any pipeline
    """Whether a component is compiled, whole or in parts."""
    whole = getattr(pipe, name, None)
    return uncompiled(whole) is not whole or any(
        module._compiled_call_impl is not None  # pyright: ignore[reportPrivateUsage] - no public way to ask
        for module in root.modules()
    )


def fastest(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """A function of tensors, compiled into few passes where that is quick and possible: on CUDA.

    What cannot be compiled there (Triton is missing, say) runs as it is.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return function
    return _once_compiled(function)


@cache
def _once_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] | None = torch.compile(function, dynamic=True)

    def call(*args: Any) -> Any:  # noqa: ANN401 - the function's own
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(*args)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # the root of what the compiler raises
                compiled = None
        return function(*args)

    return call
