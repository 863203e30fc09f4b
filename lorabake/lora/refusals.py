"""Kinds of adapters that are not a plain LoRA, told by their tensor names."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..errors import UnsupportedLoraError, listed

_KINDS = (
    (r"\.hada_", "LoHa (Hadamard) factors"),
    (r"\.lokr_", "LoKr (Kronecker) factors"),
    (r"\.dora_scale$|lora_magnitude_vector", "DoRA magnitudes"),
    (r"\.lora_mid\.|\.cp$", "Tucker (CP) core tensors"),
    (r"\.oft_|\.boft_", "OFT rotations"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "GLoRA factors"),
    (r"\.diff_b$|\.b_norm$|bias$", "bias updates"),
    (r"\.diff$|\.w_norm$|\.set_weight$", "full weight differences"),
    (r"lora_embedding_", "embedding factors"),
    (r"modules_to_save", "whole layers trained beside the LoRA"),
    (r"\.scale_weight$|\.weight_scale$|\.(absmax|quant_state)", "quantised factors"),
)
_ANY = re.compile("|".join(pattern for pattern, _ in _KINDS))


def refuse_other_kinds(keys: Collection[str], where: str) -> None:
    """Refuse what ΔW = scale · B·A cannot express, rather than drop it in silence.

    Raises:
        UnsupportedLoraError: Names the kind and some of its tensors.
    """
    foreign = sorted(key for key in keys if _ANY.search(key))
    for pattern, kind in _KINDS if foreign else ():
        found = [key for key in foreign if re.search(pattern, key)]
        if found:
            raise UnsupportedLoraError(
                f"{len(found)} of its {len(keys)} tensors hold {kind}: {listed(found, 3)}",
                where=where,
                advice="lorabake fuses plain LoRAs (one down and one up factor per layer); "
                "extract such a LoRA from it, or choose another file",
            )
