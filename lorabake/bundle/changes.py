"""What another tool has done to a bundle that it saved again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BundleError, OutputError, listed
from ..lora.energy import energy
from ..lora.pairs import Pair
from ..lora.types import LowRank
from ..runtime import Bundle
from ..runtime.container import Container
from ..runtime.manifest import COEFFICIENT_ROWS, KEY, Layer, Manifest, loads
from .deviation import SLACK, deviation
from .stack import stack

_ALIKE = 0.01
"""Relative error up to which two sums are taken for the same one, rounded."""
PLAIN = (
    "It is a plain LoRA now: make the bundle again with `lorabake make`, or load it like any other "
    "LoRA (load_lora_weights), which applies both all the time"
)


def misfit(path: Path) -> str:
    """How names and ranks of a file's tensors differ from its manifest; empty if they do not.

    Args:
        path: A file that may be no bundle any more, or never was one.
    """
    try:
        file = Container(path)
        manifest = loads(file.metadata[KEY])
    except (BundleError, KeyError):
        return ""
    return "; ".join([*_resized(file, manifest), *_renamed(file, manifest)])


def _renamed(file: Container, manifest: Manifest) -> Iterator[str]:
    layers = manifest.layers
    extra = sorted(file.keys - {key for layer in layers for key in (layer.down, layer.up)})
    gone = [str(layer) for layer in layers if not {layer.down, layer.up} <= file.keys]
    if gone and extra:
        yield (
            f"tensors of {len(gone)} of {len(layers)} layers have other names, such as {extra[0]}, "
            "as if converted to another key style"
        )
    elif gone:
        yield f"{len(gone)} of {len(layers)} layers were removed: {listed(gone, 2)}"
    elif extra and all(key.endswith(".alpha") for key in extra):
        yield "alpha tensors were added"
    elif extra:
        yield f"tensors were added that its manifest does not know: {listed(extra, 2)}"


def _resized(file: Container, manifest: Manifest) -> Iterator[str]:
    for component in dict.fromkeys(layer.component for layer in manifest.layers):
        layers = [layer for layer in manifest.layers if layer.component == component]
        rank = max(sum(x.ranks) for x in layers)
        rank += COEFFICIENT_ROWS * any(x.columns for x in layers)
        shapes = (file.shape(x.down) for x in layers if x.down in file.keys)
        found = {shape[0] for shape in shapes if shape}
        if found and found != {rank}:
            now = " to ".join(map(str, sorted({min(found), max(found)})))
            yield f"the layers of {component} were resized from rank {rank} to {now}"


def written(bundle: Bundle) -> torch.dtype | None:
    """The dtype of the original tensors, if these are the same, digit for digit, in a wider one."""
    file = Container(bundle.path)
    keys = sorted(file.keys)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        digest = hashlib.sha256()
        for key in keys:
            tensor = file.tensor(key)
            narrow = tensor.to(dtype)
            if not torch.equal(narrow.to(tensor.dtype), tensor):
                break
            digest.update(narrow.contiguous().view(-1).view(torch.uint8).numpy().data)
        if digest.hexdigest() == bundle.manifest.digest:
            return dtype
    return None


def coarsest(bundle: Bundle) -> torch.dtype:
    """The coarsest dtype in which the tensors may have been rounded: all numbers fit into it."""
    file = Container(bundle.path)

    def holds(dtype: torch.dtype, tensor: Tensor) -> bool:
        return torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)

    for dtype in (torch.bfloat16, torch.float16):
        if all(holds(dtype, file.tensor(key)) for key in sorted(file.keys)):
            return dtype
    return max((file.tensor(key).dtype for key in file.keys), key=lambda x: torch.finfo(x).eps)


def padded(bundle: Bundle) -> bool:
    """Whether there are numbers in the padding, which no tool leaves there that keeps the ranks."""
    file = Container(bundle.path)
    return any(_beyond(layer, file.tensor(layer.up)) for layer in bundle.manifest.layers)


def _beyond(layer: Layer, up: Tensor) -> bool:
    return bool(up[:, sum(layer.ranks) :].any())


def became(bundle: Bundle, pairs: Sequence[Pair], rounded: torch.dtype | None = None) -> str:
    """What the tensors became that are not within rounding of their sources.

    Args:
        bundle: It can be read, and has these layers and ranks.
        pairs: Its sources by layer, in its order, every strength and coefficient in them.
        rounded: In which dtype they were rounded, if not in their own.
    """
    found: dict[str, list[str]] = {}
    for layer, pair in zip(bundle.manifest.layers, pairs, strict=True):
        found.setdefault(_state(bundle, layer, pair, rounded), []).append(str(layer))
    count = len(pairs)
    if other := found.get("other"):
        return (
            f"{len(other)} of {count} layers hold other weights, such as {other[0]}: it was "
            "trained on, or merged with something else, or made of other LoRAs"
        )
    if anew := found.get("anew"):
        return (
            f"{len(anew)} of {count} layers were factored anew, as by an SVD: the sum of both "
            "LoRAs is the same, but they cannot be told apart any more"
        )
    return (
        f"in {len(found.get('shuffled', ()))} of {count} layers the ranks are in another order: "
        "the sum of both LoRAs is the same, but content and style are mixed up"
    )


def _state(bundle: Bundle, layer: Layer, pair: Pair, rounded: torch.dtype | None) -> str:
    file = Container(bundle.path)
    down, up = file.tensor(layer.down), file.tensor(layer.up)
    each = ((i, source) for i, source in enumerate(pair.loras) if source is not None)
    deviations = [deviation(bundle.factors(layer, i), source, rounded) for i, source in each]
    within = all(found.error <= SLACK * found.allowed for found in deviations)
    if within and not _beyond(layer, up):
        return "kept"
    try:
        wanted = stack(pair.loras, down.shape[0], down.dtype)
    except OutputError:  # the dtype is too narrow for them, so these are others
        return "other"
    if _rows(down, up) == _rows(*wanted):
        return "shuffled"
    return "anew" if _distance(down, up, pair) <= _ALIKE else "other"


def _rows(down: Tensor, up: Tensor) -> list[bytes]:
    """What each rank has in both factors, in an order of its own."""
    rows = torch.cat([down.flatten(1), up.flatten(1).T], 1).double().numpy()
    return sorted(row.tobytes() for row in rows)


def _distance(down: Tensor, up: Tensor, pair: Pair) -> float:
    """‖B'·A' − ΔW_c − ΔW_s‖ / ‖ΔW_c + ΔW_s‖, by Gram matrices in float64."""
    sources = [source for source in pair.loras if source is not None]
    A = torch.cat([source.weighted(torch.float64).flatten(1) for source in sources])
    B = torch.cat([source.up.double().flatten(1) * source.scale for source in sources], 1)
    difference = LowRank(
        torch.cat([A, down.double().flatten(1)]), torch.cat([B, -up.double().flatten(1)], 1)
    )
    least = torch.finfo(torch.float64).tiny
    return (energy(difference) / max(energy(LowRank(A, B)), least)) ** 0.5
