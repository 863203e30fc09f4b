"""What a replay applied, from its report: read back, summed up, drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lorabake
from lorabake import applied, plots
from lorabake.errors import OverrideError
from lorabake.runtime import Bundle

from .oracle import write_lora

NAMES = [f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{p}" for p in "kqv"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for seed, path in enumerate(paths):
        # The third layer is content's alone.
        shapes = {f"unet.{name}": (8, 8) for name in NAMES[: 3 - seed]}
        write_lora(path, shapes, "peft", seed, keep=1.0)
    lorabake.make(*paths, tmp_path / "bundle.safetensors", method="dynamic", guide="off")
    return lorabake.load(tmp_path / "bundle.safetensors")


def told(first: Any, second: Any, gates: Any = ([1.0, 1.0], [1.0, 1.0])) -> dict[str, Any]:
    rows = [([None, None], first), ([None, None], second), (list(gates), [])]
    return {
        "method": "dynamic",
        "progress": [0.0, 0.5],
        "layers": [
            {"component": "unet", "module": name, "gates": gates, "decisions": chosen}
            for name, (gates, chosen) in zip(NAMES, rows, strict=True)
        ],
    }


def test_shares_of_style(bundle: Bundle) -> None:
    # Two calls of two samples at first, then one; the second layer was not computed at all once.
    report = told([[[0, 1], [1, 1]], [[0, 0]]], [[[1, 1], None], [None]], ([0.0, 0.5], [2.0, 0.0]))
    found = applied.shares(bundle, report)
    np.testing.assert_array_equal(found, [[0.75, 1.0, 0.0], [0.0, math.nan, 0.0]])
    # Gates of layers that both LoRAs have.
    report = told([[[0]], [[0]]], [[[0]], [[0]]], ([1.0, 1.0], None))
    report["layers"][0] |= {"decisions": [], "gates": [[1.0, 0.5], None]}
    report["layers"][1] |= {"decisions": [], "gates": [[0.0, 0.5], [2.0, 0.0]]}
    gated = applied.shares(bundle, report)
    np.testing.assert_array_equal(gated, [[applied.BOTH, 1.0, 0.0], [math.nan, 0.0, math.nan]])


def test_a_run_is_drawn_between_the_two_colours(bundle: Bundle, tmp_path: Path) -> None:
    report = told([[[0, 1]], [[1, 1]]], [[[0, 0]], [None]])
    share = plots.plot(bundle, tmp_path / "run.png", report=report)
    wanted = {"content": 3.5 / 6, "style": 1.5 / 6, "both": 0, "unknown": 1 / 6}
    assert share == pytest.approx(wanted)
    with Image.open(tmp_path / "run.png") as file:
        pixels = np.asarray(file.convert("RGB")).astype(int)
    halfway = np.array([(59, 111, 182), (242, 163, 58)]).mean(0)
    assert (abs(pixels - halfway).max(-1) <= 1).mean() > 0.05
    share = plots.plot(bundle, tmp_path / "plan.png")
    assert share == pytest.approx({"content": 1 / 3, "style": 0, "both": 0, "live": 2 / 3})


def test_reports_of_others_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    good = told([[[0]], [[0]]], [[[0]], [[0]]])
    path.write_text(json.dumps(good))
    assert applied.read(path) == good
    for text in ("[]", "{", '{"layers": 1}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(OverrideError, match=r"report.json: is not a replay's report"):
            applied.read(path)
    with pytest.raises(OverrideError, match="No such file"):
        applied.read(tmp_path / "nothing.json")
    odd = [told([[[n]], [[0]]], [[[0]], [[0]]]) for n in (2, -1, math.inf, 10**400, "1", 0.5)]
    less = good | {"layers": good["layers"][:2]}
    for broken in (less, good | {"progress": None}, good | {"method": "klora"}, *odd):
        with pytest.raises(OverrideError, match="not of a replay of this bundle"):
            applied.shares(bundle, broken)
    with pytest.raises(OverrideError, match="painted nothing"):
        applied.shares(bundle, good | {"progress": []})
