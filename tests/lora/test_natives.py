"""Modules of models' own code, against the converters with which diffusers loads their checkpoints.

Each output row of a native weight is numbered; where the rows end up is compared, so a swapped half
or a wrong cut shows. Weights are as wide as the published ones, expanded from one column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from lorabake.lora import LayerName, LowRank, natives
from lorabake.lora.natives import Native, flux, flux2, sd3, wan, zimage

lib: Any = single_file_utils

Sizes = Mapping[str, tuple[int, int]]
"""Rows and columns of native modules."""


def _flux() -> Sizes:
    h = 3072
    blocks = {
        f"double_blocks.0.{side}_{inner}": size
        for side in ("img", "txt")
        for inner, size in {
            "attn.qkv": (3 * h, h), "attn.proj": (h, h), "mlp.0": (4 * h, h), "mlp.2": (h, 4 * h),
            "mod.lin": (6 * h, h),
        }.items()
    }  # fmt: skip
    ends = {
        f"{name}_in.{layer}": (h, 256 if layer == "in_layer" else h)
        for name in ("time", "vector", "guidance")
        for layer in ("in_layer", "out_layer")
    }
    return blocks | ends | {
        "single_blocks.0.linear1": (7 * h, h), "single_blocks.0.linear2": (h, 5 * h),
        "single_blocks.0.modulation.lin": (3 * h, h), "img_in": (h, 64), "txt_in": (h, 4096),
        "final_layer.linear": (64, h), "final_layer.adaLN_modulation.1": (2 * h, h),
    }  # fmt: skip


def _flux2() -> Sizes:
    h = 12
    blocks = {
        f"double_blocks.0.{side}_{inner}": size
        for side in ("img", "txt")
        for inner, size in {
            "attn.qkv": (3 * h, h), "attn.proj": (h, h), "mlp.0": (6 * h, h), "mlp.2": (h, 3 * h),
        }.items()
    }  # fmt: skip
    streams = ("double_stream_modulation_img", "double_stream_modulation_txt")
    ends = {
        f"{name}_in.{layer}": (h, 4 if layer == "in_layer" else h)
        for name in ("time", "guidance")
        for layer in ("in_layer", "out_layer")
    }
    return blocks | ends | {f"{stream}.lin": (6 * h, h) for stream in streams} | {
        "single_stream_modulation.lin": (3 * h, h), "img_in": (h, 8), "txt_in": (h, 20),
        "single_blocks.0.linear1": (9 * h, h), "single_blocks.0.linear2": (h, 4 * h),
        "final_layer.linear": (8, h), "final_layer.adaLN_modulation.1": (2 * h, h),
    }  # fmt: skip


def _sd3() -> Sizes:
    h = 12
    x = {
        "attn.qkv": (3 * h, h), "attn.proj": (h, h), "mlp.fc1": (4 * h, h), "mlp.fc2": (h, 4 * h),
        "adaLN_modulation.1": (6 * h, h), "attn2.qkv": (3 * h, h), "attn2.proj": (h, h),
    }  # fmt: skip
    context = {key: size for key, size in x.items() if "attn2" not in key}
    last = {"attn.qkv": (3 * h, h), "adaLN_modulation.1": (2 * h, h)}
    blocks = {f"joint_blocks.{i}.x_block.{k}": size for i in range(2) for k, size in x.items()}
    blocks |= {f"joint_blocks.0.context_block.{k}": size for k, size in context.items()}
    blocks |= {f"joint_blocks.1.context_block.{k}": size for k, size in last.items()}
    embedders = {f"{e}_embedder.mlp.{i}": (h, 8 if i == 0 else h) for e in "ty" for i in (0, 2)}
    return blocks | embedders | {
        "x_embedder.proj": (h, 4), "context_embedder": (h, 20), "final_layer.linear": (4, h),
        "final_layer.adaLN_modulation.1": (2 * h, h),
    }  # fmt: skip


def _wan() -> Sizes:
    h = 12
    attention = {
        f"blocks.1.{kind}.{name}": (h, h)
        for kind, names in (("self_attn", "q k v o"), ("cross_attn", "q k v o k_img v_img"))
        for name in names.split()
    }
    embeddings = {f"{e}_embedding.{i}": (h, h) for e in ("time", "text") for i in (0, 2)}
    return attention | embeddings | {
        "blocks.1.ffn.0": (3 * h, h), "blocks.1.ffn.2": (h, 3 * h), "time_projection.1": (6 * h, h),
        "img_emb.proj.1": (h, h), "img_emb.proj.3": (h, h), "head.head": (4, h),
    }  # fmt: skip


def _zimage() -> Sizes:
    h = 12
    inner = {"attention.qkv": (3 * h, h), "attention.out": (h, h), "feed_forward.w1": (3 * h, h),
             "feed_forward.w2": (h, 3 * h), "feed_forward.w3": (3 * h, h)}  # fmt: skip
    stacks = ("layers", "noise_refiner", "context_refiner")
    blocks = {f"{stack}.1.{k}": size for stack in stacks for k, size in inner.items()}
    return blocks | {
        "layers.1.adaLN_modulation.0": (4 * h, 8), "noise_refiner.1.adaLN_modulation.0": (4 * h, 8),
        "x_embedder": (h, 4), "final_layer.linear": (4, h), "cap_embedder.1": (h, 20),
        "final_layer.adaLN_modulation.1": (h, 8), "t_embedder.mlp.0": (h, 4),
        "t_embedder.mlp.2": (8, h),
    }  # fmt: skip


CASES: list[tuple[Native, Callable[[], Sizes], str]] = [
    (flux.NATIVE, _flux, "convert_flux_transformer_checkpoint_to_diffusers"),
    (flux2.NATIVE, _flux2, "convert_flux2_transformer_checkpoint_to_diffusers"),
    (sd3.NATIVE, _sd3, "convert_sd3_transformer_checkpoint_to_diffusers"),
    (wan.NATIVE, _wan, "convert_wan_transformer_to_diffusers"),
    (zimage.NATIVE, _zimage, "convert_z_image_transformer_checkpoint_to_diffusers"),
]


class Checkpoint(dict[str, Tensor]):
    """A checkpoint that makes up what a LoRA has no part in: biases and norms."""

    def pop(self, key: str, default: Any = None) -> Tensor:
        if key in self:
            return super().pop(key)
        weight = self.rows.get(key.removesuffix(".bias"), 3)
        return torch.zeros(weight)

    rows: Mapping[str, int] = {}


def numbered(rows: int) -> Tensor:
    return torch.arange(rows, dtype=torch.float32)[:, None]


@pytest.mark.parametrize(
    ("native", "sizes", "converter"), CASES, ids=lambda x: getattr(x, "family", "")
)
def test_rows_end_up_where_the_checkpoint_s_do(
    native: Native, sizes: Callable[[], Sizes], converter: str
) -> None:
    found = sizes()
    checkpoint = Checkpoint(
        {
            f"{key}.weight": numbered(rows).expand(rows, width)
            for key, (rows, width) in found.items()
        }
    )
    checkpoint.rows = {key: rows for key, (rows, _) in found.items()}
    converted: dict[str, Tensor] = getattr(lib, converter)(checkpoint)
    seen: set[str] = set()
    for key, (rows, width) in found.items():
        for spelling in (key, key.replace(".", "_")):
            placed = native.place(spelling, LowRank(torch.ones(1, width), numbered(rows)))
            assert placed is not None, spelling
            for name, piece in placed.items():
                weight = converted[f"{name.module}.weight"]
                assert piece.shape == weight.shape, name
                assert torch.equal(piece.up[:, 0], weight[:, 0]), name
                seen.add(name.module)
                home = native.home(name.module)
                assert home is not None
                assert home[0].format(home[1]) == key
    assert {pattern.format(0) for modules in native.modules.values() for pattern in modules} <= {
        module.replace(".1.", ".0.", 1) if module.split(".")[0] not in ENDS else module
        for module in seen
    }


ENDS = ("cap_embedder", "condition_embedder")
"""Heads of modules in whose paths the first number is no block's."""


@pytest.mark.parametrize(
    ("sign", "family"),
    [("double_blocks.0.img_mod.lin", "flux"), ("double_stream_modulation_img.lin", "flux2")],
)
def test_a_neighbour_tells_whose_the_time_embedding_is(sign: str, family: str) -> None:
    """FLUX.1's and the smaller Klein's are named and shaped alike."""
    members = natives.likeliest([sign, "time_in.in_layer"])
    factors = LowRank(torch.ones(1, 256), torch.ones(3072, 1))
    placed = natives.place("time_in.in_layer", factors, members)
    wanted = {"flux": "time_text_embed", "flux2": "time_guidance_embed"}[family]
    assert placed is not None
    assert list(placed) == [LayerName("transformer", f"{wanted}.timestep_embedder.linear_1")]


@pytest.mark.parametrize("rows", [23, 25])
def test_rows_that_cannot_be_cut(rows: int) -> None:
    factors = LowRank(torch.ones(2, 8), torch.ones(rows, 2))
    assert natives.place("double_blocks.0.img_attn.qkv", factors) is None
    assert natives.place("single_blocks.0.linear1", factors) is None
