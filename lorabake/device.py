"""Choosing a device by name."""

from __future__ import annotations

import warnings

import torch

from .errors import RecipeError


def device(name: str) -> torch.device:
    """The torch device of this name.

    Raises:
        RecipeError: There is no such device, or it cannot be used here.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.device(name)
            torch.empty(1, device=found).cpu()
    except Exception as error:  # every backend has its own way to say that it is not there
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise RecipeError(
            f"cannot be used here ({reason})", where=f"device {name!r}", advice="Use cpu"
        ) from error
    return found
