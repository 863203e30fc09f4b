"""Where a bundle's layers are in a model of ComfyUI, by ComfyUI's own map of LoRA names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .reading import AttachError, Bundle, Layer, listed

Key = str | tuple[Any, ...]
"""A weight's name, or (name, part, function): part is (dimension, start, size) or None."""

_ADVICE = (
    "Use the base model that its LoRAs were trained on. If it is that, ComfyUI does not know these "
    "names: leave CLIP unconnected if they are a text encoder's, or make plain LoRAs with "
    "`lorabake export`"
)


@dataclass(frozen=True)
class Target:
    """What one layer of a bundle changes.

    Attributes:
        module: A linear layer or a convolution; linear layers of 8-bit models are not torch's.
        part: The (dimension, start, size) of the module's weight which is the layer's; None if
            that is all of it.
        function: What turns ΔW into the order of rows that the module's weight has.
    """

    module: nn.Module
    part: tuple[int, int, int] | None
    function: Callable[[Tensor], Tensor] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ΔW that fits."""
        of = self.module
        if isinstance(of, nn.Conv2d):
            shape = [of.out_channels, of.in_channels // of.groups, *of.kernel_size]
        else:
            shape = [of.out_features, of.in_features]
        if self.part is not None:
            dimension, start, size = self.part
            shape[dimension] = min(size, shape[dimension] - start)
        return tuple(shape)


def stem(layer: Layer) -> str:
    """The name of a layer in a LoRA file, without what tells its two tensors apart."""
    return layer.down.removesuffix(".weight").rpartition(".")[0]


def find(
    root: nn.Module, bundle: Bundle, layers: Iterable[Layer], names: dict[str, Key]
) -> list[Target]:
    """The target of each layer.

    Args:
        root: ComfyUI's model.
        bundle: Whose layers they are.
        layers: Those that belong into this model.
        names: What ComfyUI calls the weight that a name in a LoRA file stands for.

    Raises:
        AttachError: A layer is not there, or has another shape.
    """
    found = [(layer, _target(root, names.get(stem(layer)))) for layer in layers]
    wrong = [str(layer) for layer, target in found if not _fits(target, bundle.shape(layer))]
    if wrong:
        raise AttachError(
            f"{len(wrong)} of {len(found)} layers of this {bundle.manifest.family} bundle do not "
            f"fit the {type(root).__name__} model: {listed(wrong)}",
            where=str(bundle.path),
            advice=_ADVICE,
        )
    return [target for _, target in found if target is not None]


def _fits(target: Target | None, shape: tuple[int, ...]) -> bool:
    return target is not None and target.shape == shape


def _target(root: nn.Module, key: Key | None) -> Target | None:
    if key is None:
        return None
    given = (key,) if isinstance(key, str) else key
    name, part, function, *_ = (*given, None, None)
    try:
        module = root.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return None  # the map has names that only larger models have
    fits = isinstance(module, nn.Conv2d) or hasattr(module, "in_features")
    return Target(module, part, function) if fits else None
