"""Real layouts of files: which dialect, which layers of the real model, which family."""

from __future__ import annotations

import math
import re

import pytest
import torch

from lorabake.errors import LoraFileError
from lorabake.lora import dialects, factors, families

from . import layouts
from .layouts import LAYOUTS, Layout

each = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


def test_every_dialect_and_family_has_a_layout() -> None:
    found = LAYOUTS.values()
    assert {layout.dialect for layout in found} == {d.name for d in dialects.MEMBERS}
    assert {layout.family for layout in found} == set(families.names())


@each
def test_one_detector_fits(layout: Layout) -> None:
    keys = layout.shapes.keys()
    fitting = [d.name for d in dialects.MEMBERS if d.objection(keys) is None]
    assert fitting == [layout.dialect]


@each
def test_layers_of_the_real_model(layout: Layout) -> None:
    """Each name exists with the shape of its ΔW, and together they have as much as the file."""
    tensors = layout.tensors()
    dialect = next(d for d in dialects.MEMBERS if d.name == layout.dialect)
    parts = factors.split(dialect, tensors, layout.name)
    layers = factors.assemble(dialect, parts, tensors, {}, layout.name)
    known = layouts.model(layout.model)
    assert {name: factor.shape for name, factor in layers.items()} == {
        name: known.get(name) for name in layers
    }
    assert sum(math.prod(known[name]) for name in layers) == _entries(layout)

    evidence = families.Evidence(layers, dialect.name, {})
    family, _ = families.recognise(evidence, layout.name)
    assert family.name == layout.family


@pytest.mark.parametrize(
    ("module", "width", "rows"),
    [
        # Lumina 2: 2304 rows of queries, 768 of keys and 768 of values; Z-Image has equal parts.
        ("diffusion_model.layers.0.attention.qkv", 2304, 3840),
        ("lora_unet_layers_0_attention_qkv", 2304, 3840),
        # Anima; Wan has cross_attn_q.
        ("diffusion_model.blocks.0.cross_attn.q_proj", 2048, 2048),
        ("lora_unet_blocks_0_cross_attn_q_proj", 2048, 2048),
        # HunyuanVideo; FLUX has img_attn.qkv and img_mlp_0.
        ("diffusion_model.double_blocks.0.img_attn_qkv", 3072, 9216),
        ("lora_unet_double_blocks_0_img_mlp_fc1", 3072, 12288),
    ],
)
def test_similar_names_of_other_models_are_refused(module: str, width: int, rows: int) -> None:
    shapes = {"lora_down.weight": (4, width), "lora_up.weight": (rows, 4)}
    tensors = {f"{module}.{end}": torch.ones(shape) for end, shape in shapes.items()}
    dialect = dialects.detect(tensors.keys(), "file")
    with pytest.raises(LoraFileError, match=re.escape(module)):
        factors.assemble(dialect, factors.split(dialect, tensors, "file"), tensors, {}, "file")


def _entries(layout: Layout) -> int:
    """Entries of the file's ΔW: rows of each up factor × what one row of its down factor has."""
    total = 0
    for key, shape in layout.shapes.items():
        for down, up in ((".lora_down.", ".lora_up."), (".lora_A.", ".lora_B."), ("down.", "up.")):
            if down in key:
                rows = layout.shapes[key.replace(down, up)][0]
                total += rows * math.prod(shape[1:])
                break
    return total
