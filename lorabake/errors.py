"""One exception tree: every user mistake has a class, an exit code and a message."""

from __future__ import annotations

from .runtime.errors import (
    AttachError,
    BundleError,
    LorabakeError,
    OverrideError,
    UserError,
    listed,
    shortened,
)

__all__ = [
    "AttachError",
    "BaseModelError",
    "BundleError",
    "ImageError",
    "LoraFileError",
    "LorabakeError",
    "MemoryLackError",
    "OutputError",
    "OverrideError",
    "PairError",
    "RecipeError",
    "TrainingError",
    "UnsupportedLoraError",
    "UserError",
    "VerifyError",
    "listed",
    "out_of_memory",
    "shortened",
]


def out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left; on a CPU torch has no type of its own for that."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words))
    )


class LoraFileError(UserError):
    """A LoRA cannot be read: missing, not safetensors, empty, NaN or Inf, contradicting shapes."""


class UnsupportedLoraError(LoraFileError):
    """A readable file of a kind lorabake does not take: DoRA, OFT, biases, a pickle, and so on."""


class PairError(UserError):
    """Two LoRAs that cannot be fused: no common layer, different base models, other shapes."""


class BaseModelError(UserError):
    """A base model cannot be loaded: missing, not in diffusers format, or the hub is not there."""


class ImageError(UserError):
    """Reference images cannot be used: no folder, none in it, unreadable, or of an unfit size."""


class RecipeError(UserError):
    """A method, preset or parameter that does not exist or has a value out of range."""


class OutputError(UserError):
    """The output exists already, or its folder cannot be written to."""


class TrainingError(LorabakeError):
    """Training cannot go on: a loss is not finite, or a layer has no solution."""


class MemoryLackError(LorabakeError):
    """Training does not fit into the device's memory."""


class VerifyError(LorabakeError):
    """What was written is not what went in: a defect of lorabake or of the disk."""
