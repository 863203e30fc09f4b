"""Real layouts of files: which dialect, which layers of the real model, which family."""

from __future__ import annotations

import math

import pytest

from lorabake.lora import dialects, factors, families

from . import layouts
from .layouts import LAYOUTS, Layout

each = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


@each
def test_one_detector_fits(layout: Layout) -> None:
    keys = layout.shapes.keys()
    fitting = [d.name for d in dialects.MEMBERS if d.objection(keys) is None]
    assert fitting == [layout.dialect]


@each
def test_layers_of_the_real_model(layout: Layout) -> None:
    """Each name exists with the shape of its ΔW, and together they have as much as the file."""
    tensors = layout.tensors()
    dialect = dialects.detect(tensors.keys(), layout.name)
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
