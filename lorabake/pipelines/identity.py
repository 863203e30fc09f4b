"""What a loaded pipeline is, as a digest: the same wherever its files lie and came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_LOOKED_AT = 1024
"""Numbers of each tensor: reading all of a large model would take minutes."""


def identity(pipe: Any) -> str:  # noqa: ANN401 - any diffusers pipeline
    """Hex SHA-256 over the pipeline's class, configurations, and a sample of all its weights.

    Of each tensor its name, dtype, shape, and 1024 numbers at equal distances are looked at; what
    differs in others only is taken for the same.
    """
    found = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(pipe.components.items()):
        found.update(f"{name} {type(part).__name__}".encode())
        found.update(_config(part).encode())
        if isinstance(part, nn.Module):
            for piece in _sampled(part):
                found.update(piece)
    return found.hexdigest()


def _config(part: object) -> str:
    """A part's configuration without what only tells where it came from."""
    config: Any = getattr(part, "config", None)
    if config is None:
        vocabulary = getattr(part, "get_vocab", None)
        return json.dumps(vocabulary(), sort_keys=True) if vocabulary else ""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    own = {k: v for k, v in values.items() if not (k[:1] == "_" or "version" in k)}
    return json.dumps(own, sort_keys=True, default=str)


def _sampled(model: nn.Module) -> Iterator[bytes]:
    for name, tensor in sorted(model.state_dict().items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        if not tensor.is_meta:
            yield _sample(tensor).double().numpy().tobytes()


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    if flat.numel() <= _LOOKED_AT:
        return flat.cpu()
    places = torch.linspace(0, flat.numel() - 1, _LOOKED_AT, dtype=torch.float64).long()
    return flat[places.to(flat.device)].cpu()
