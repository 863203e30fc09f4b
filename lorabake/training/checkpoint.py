"""Checkpoints: one safetensors file that takes the old one's place when it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from .. import output
from ..errors import OutputError
from .loop import State
from .objective import Loss
from .problem import References

_KEY = "lorabake-training"


def claim(path: Path, *, resume: bool, force: bool) -> None:
    """Refuse a place for checkpoints before work starts.

    Args:
        path: Where they are to be written.
        resume: Whether a training goes on from there.
        force: Whether an unfinished training there may be lost.

    Raises:
        OutputError: Nothing can be written there, or what is there is somebody else's, or an
            unfinished training that is neither resumed nor given up.
    """
    output.check(path, force=True)
    if path.exists() and not resume:
        _read(path)
        if not force:
            raise OutputError(
                "is a training that was interrupted",
                where=str(path),
                advice="Go on with it with --resume, or start again with --force",
            )


def save(path: Path, identity: Mapping[str, Any], references: References, state: State) -> None:
    """Write a checkpoint.

    Args:
        path: Its file.
        identity: What the training depends on; only a run with the same may go on from here.
        references: Clean latents of content and style.
        state: Where the training is.

    Raises:
        OutputError: It cannot be written.
    """
    tensors = {
        "coefficients": state.flat,
        "adam.first": state.first,
        "adam.second": state.second,
        "history": torch.tensor(state.history, dtype=torch.float64).view(-1, 3),
        "references.content": references[0],
        "references.style": references[1],
    }
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, {_KEY: json.dumps(identity, sort_keys=True)})
    with output.replacing(path) as file:
        file.write(data)


def load(path: Path, identity: Mapping[str, Any], columns: int) -> tuple[References, State] | None:
    """Read a checkpoint; None if there is none.

    Args:
        path: Its file.
        identity: What the training depends on.
        columns: How many columns have coefficients.

    Raises:
        OutputError: It is damaged, or of another training.
    """
    if not path.exists():
        return None
    found, references, state = _read(path)
    theirs = json.loads(json.dumps(identity))
    other = sorted(k for k in {*found, *theirs} if found.get(k) != theirs.get(k))
    if other or state.flat.shape != (2, columns):
        raise OutputError(
            f"belongs to another training ({', '.join(other) or 'layers'} differ)",
            where=str(path),
            advice="Resume with the same inputs and settings, or start again with --force",
        )
    return references, state


def _read(path: Path) -> tuple[dict[str, Any], References, State]:
    try:
        with safe_open(path, "pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        history = tuple(Loss(*row) for row in tensors["history"].tolist())
        state = State(
            tensors["coefficients"], tensors["adam.first"], tensors["adam.second"], history
        )
        return found, (tensors["references.content"], tensors["references.style"]), state
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise OutputError(
            "is no checkpoint of a training, or damaged",
            where=str(path),
            advice="Move it away, or choose another name for the bundle",
        ) from error
