"""Key styles of LoRA files. A new one is a file here and a line in `MEMBERS`."""

from __future__ import annotations

from collections.abc import Collection

from ...errors import LoraFileError
from . import (
    comfyui,
    diffusers_new,
    diffusers_old,
    dotted_kohya,
    fal,
    kohya_diffusers,
    kohya_flux,
    kohya_sd3,
    kohya_sgm,
    lycoris,
    musubi,
    onetrainer,
    peft,
    xlabs,
)  # fmt: skip
from .dialect import Dialect, Part

__all__ = ["MEMBERS", "Dialect", "Part", "detect", "named"]

MEMBERS = (
    peft.DIALECT, fal.DIALECT, comfyui.DIALECT, diffusers_new.DIALECT, diffusers_old.DIALECT,
    kohya_diffusers.DIALECT, kohya_sgm.DIALECT, kohya_flux.DIALECT, kohya_sd3.DIALECT,
    musubi.DIALECT, onetrainer.DIALECT, lycoris.DIALECT, dotted_kohya.DIALECT, xlabs.DIALECT,
)  # fmt: skip


def detect(keys: Collection[str], where: str) -> Dialect:
    """The one dialect that these keys are in.

    Args:
        keys: Every tensor name of the file.
        where: The file, for messages.

    Raises:
        LoraFileError: No dialect matches, or more than one does.
    """
    signs = {dialect: dialect.sign(keys) for dialect in MEMBERS}
    fitting = [dialect for dialect, sign in signs.items() if sign is not None]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = " and ".join(f"{dialect.name} ({signs[dialect]})" for dialect in fitting)
        raise LoraFileError(
            f"its {len(keys)} tensors mix the key styles of {found}; {_objections(keys)}",
            where=where,
            advice="Save it again from one program",
        )
    raise LoraFileError(
        f"its {len(keys)} tensors are in no key style of a LoRA that lorabake reads "
        f"(the first is {min(keys)!r}; {_objections(keys)})",
        where=where,
        advice="Choose a LoRA file, not a whole model, or convert it with the program that made it",
    )


def named(keys: Collection[str]) -> str:
    """The name of the one dialect that these keys are in; empty if it is not one."""
    fitting = [dialect.name for dialect in MEMBERS if dialect.sign(keys) is not None]
    return fitting[0] if len(fitting) == 1 else ""


def _objections(keys: Collection[str]) -> str:
    """Why each of the other dialects does not fit."""
    found = {dialect.name: dialect.objection(keys) for dialect in MEMBERS}
    return "; ".join(f"{name}: {reason}" for name, reason in found.items() if reason)
