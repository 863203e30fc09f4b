"""The demo from end to end, with as little of everything as there can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import lorabake
from lorabake.demo import showcase
from lorabake.errors import OutputError

LITTLE: dict[str, dict[str, Any]] = {
    "ziplora": {"references": 1, "updates": 1},
    "ziplora-layerwise": {"references": 1, "draws": 4},
    "dynamic": {},
}


@pytest.mark.filterwarnings("ignore:the coefficients barely moved")
def test_showcase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(content: Path, style: Path, output: Path, **given: Any) -> lorabake.Report:
        if "method" in given:
            given |= {"reference_steps": 2} | LITTLE[given["method"]]
        return lorabake.make(content, style, output, **given)

    monkeypatch.setattr(showcase, "make", make)
    monkeypatch.setattr(showcase, "STEPS", 2)
    found = showcase.run(tmp_path, 1)
    labels = [row.label for row in found.rows]
    assert labels[:4] == ["base", "content only", "style only", "direct merge"]
    assert labels[4:] == ["klora", "ziplora", "ziplora-layerwise", "dynamic"]
    assert all(0 <= row.product.mean <= row.style.mean <= 1 for row in found.rows)
    assert all(label in str(found) for label in labels)
    bundles = [lorabake.load(path) for path in (found.bundle, *found.others)]
    assert [bundle.manifest.method for bundle in bundles] == labels[4:]
    with Image.open(found.comparison) as page:
        assert page.width > 8 * 160
    assert len([*tmp_path.iterdir()]) == 6
    with pytest.raises(OutputError, match="exists already"):
        showcase.run(tmp_path, 1)
