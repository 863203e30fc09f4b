"""torch.compile: what it has to forget when layers gain or lose a hook."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
