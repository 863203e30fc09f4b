from __future__ import annotations

import pytest
import torch

from lorabake.errors import PairError
from lorabake.lora import LayerName, Lora, LowRank, Provenance, pair

SHARED = LayerName("unet", "mid_block.attentions.0.proj_in")
EARLY = LayerName("unet", "conv_in")
LATE = LayerName("unet", "up_blocks.10.resnets.0.conv1")


def lora(*names: LayerName, rank: int = 2, family: str = "sd15", width: int = 4) -> Lora:
    factors = LowRank(torch.ones(rank, width), torch.ones(4, rank))
    return Lora(dict.fromkeys(names, factors), family, Provenance("cat", "0"), {})


def test_layers_of_one_and_of_both_in_network_order() -> None:
    pairs = pair(lora(LATE, SHARED), lora(SHARED, EARLY, rank=3))
    assert [p.name for p in pairs] == [EARLY, SHARED, LATE]
    assert [p.both for p in pairs] == [False, True, False]
    assert [p.ranks for p in pairs] == [(0, 3), (2, 3), (2, 0)]


def test_no_common_layer() -> None:
    with pytest.raises(PairError, match=r"no layer in common .*conv_in.*proj_in"):
        pair(lora(EARLY), lora(SHARED))


def test_other_shapes() -> None:
    with pytest.raises(
        PairError, match=r"shapes differ: unet\.mid_block.* \(4, 4\) against \(4, 8\)"
    ):
        pair(lora(SHARED), lora(SHARED, width=8))


def test_two_families() -> None:
    with pytest.raises(PairError, match="content LoRA is for sd15, the style LoRA for sdxl"):
        pair(lora(SHARED), lora(SHARED, family="sdxl"))
