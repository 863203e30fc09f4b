"""Choosing a device by name."""

from __future__ import annotations

import torch

from .errors import RecipeError


def device(name: str) -> torch.device:
    """The torch device of this name.

    Raises:
        RecipeError: There is no such device, or it cannot be used here.
    """
    try:
        found = torch.device(name)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise RecipeError(
            f"cannot be used here ({reason})", where=f"device {name!r}", advice="Use cpu"
        ) from error
    return found
