"""Adapters that no low-rank factors can express without the base model, told by tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import UnsupportedLoraError, listed

_KINDS = (
    (
        r"\.dora_scale$|lora_magnitude_vector",
        "DoRA magnitudes",
        "they rescale W0 + ΔW for each output, so the base model's weights are needed and the "
        "update is of full rank",
    ),
    (
        r"\.b?oft_|\.rescale$",
        "OFT rotations",
        "they turn the base model's weights instead of adding to them",
    ),
    (
        r"\.(a1|a2|b1|b2|bm)\.weight$",
        "GLoRA factors",
        "a part of them multiplies the base model's weights",
    ),
    (
        r"\.ia3_|\.on_input$",
        "IA³ vectors",
        "they multiply the base model's weights instead of adding to them",
    ),
    (
        r"\.diff_b$|\.b_norm$|bias$",
        "bias updates",
        "a file of low-rank factors has no place for them",
    ),
    (
        r"\.w_norm$",
        "updates of norms",
        "these weights are vectors, which have no low-rank factors",
    ),
    (
        r"\.set_weight$|\.reshape_weight$",
        "whole weights",
        "they replace the base model's or change their shape instead of adding to them",
    ),
    (
        r"lora_embedding_",
        "embedding factors",
        "bundles change linear and convolutional layers only",
    ),
    (
        r"modules_to_save",
        "whole layers trained beside the LoRA",
        "they replace the base model's weights instead of adding to them",
    ),
    (
        r"\.scale_weight$|\.weight_scale$|\.(absmax|quant_state)",
        "quantised factors",
        "their numbers need a program that knows the quantisation",
    ),
)
_ANY = re.compile("|".join(pattern for pattern, *_ in _KINDS))


def refuse_other_kinds(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse what low-rank factors cannot express, rather than drop it in silence.

    Raises:
        UnsupportedLoraError: Names the kind, some of its tensors, and why it cannot be taken.
    """
    foreign = sorted(key for key in tensors if _ANY.search(key))
    for pattern, kind, reason in _KINDS if foreign else ():
        found = [key for key in foreign if re.search(pattern, key)]
        if found:
            raise _refusal(found, len(tensors), kind, reason, where)
    vectors = sorted(k for k, t in tensors.items() if k.endswith(".diff") and t.ndim < 2)
    if vectors:
        reason = "vectors, of norms for example, have no low-rank factors"
        raise _refusal(vectors, len(tensors), "differences of vectors", reason, where)


def _refusal(
    found: list[str], total: int, kind: str, reason: str, where: str
) -> UnsupportedLoraError:
    return UnsupportedLoraError(
        f"{len(found)} of its {total} tensors hold {kind}: {listed(found, 3)}; {reason}",
        where=where,
        advice="Extract a plain LoRA from it with the program that made it, or choose another file",
    )
