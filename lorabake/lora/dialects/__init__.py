"""Key styles of LoRA files. A new one is a file here and a line in `MEMBERS`."""

from __future__ import annotations

from collections.abc import Collection

from ...errors import LoraFileError
from . import diffusers_new, diffusers_old, kohya_diffusers, kohya_flux, kohya_sgm, peft
from .dialect import Dialect, Part

__all__ = ["MEMBERS", "Dialect", "Part", "detect"]

MEMBERS = (
    peft.DIALECT,
    diffusers_old.DIALECT,
    diffusers_new.DIALECT,
    kohya_diffusers.DIALECT,
    kohya_sgm.DIALECT,
    kohya_flux.DIALECT,
)


def detect(keys: Collection[str], where: str) -> Dialect:
    """The one dialect that these keys are in.

    Args:
        keys: Every tensor name of the file.
        where: The file, for messages.

    Raises:
        LoraFileError: No dialect matches, or more than one does.
    """
    objections = {dialect: dialect.objection(keys) for dialect in MEMBERS}
    fitting = [dialect for dialect, objection in objections.items() if objection is None]
    if len(fitting) == 1:
        return fitting[0]
    first = min(keys)
    if fitting:
        raise LoraFileError(
            f"its {len(keys)} tensors mix the key styles of "
            f"{' and '.join(dialect.name for dialect in fitting)} (the first is {first!r})",
            where=where,
            advice="Save it again from one program",
        )
    reasons = "; ".join(f"{dialect.name}: {objection}" for dialect, objection in objections.items())
    raise LoraFileError(
        f"its {len(keys)} tensors are in no key style of a LoRA that lorabake reads "
        f"(the first is {first!r}; {reasons})",
        where=where,
        advice="Choose a LoRA file, not a whole model, or convert it with the program that made it",
    )
