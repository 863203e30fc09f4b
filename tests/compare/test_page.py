"""The report: hostile names and prompts, nothing from elsewhere, what is said when."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorabake.compare.comparison import Comparison, Picture, References, Row
from lorabake.compare.page import page
from lorabake.compare.statistics import harmonic, mean
from lorabake.compare.tables import csv_of, latex, markdown, text
from lorabake.compare.verdict import verdict

EVIL = '<script>alert("1")</script>\'"&<img src=x onerror=alert(2)>|`$\\input{x}\x1b[31m'


class Tags(HTMLParser):
    """Tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def hostile(tmp_path: Path) -> Comparison:
    """A comparison in which every text that comes from files or users is evil."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    one = mean(np.array([0.5, 0.7]))
    scores = {"harmonic": 0.5, "dino": 0.5}

    def row(label: str, *, anchor: bool, reason: str = "") -> Row:
        failures = (reason or "", reason or EVIL)
        pictures = tuple(Picture("a.png", 0, i, failures[i], scores) for i in (0, 1))
        means = {"harmonic": one, "dino": one}
        return Row(label, anchor, "klora", {"x": EVIL}, EVIL, "0" * 64, reason, pictures, means,
                   {} if label == "direct merge" else means)  # fmt: skip

    anchors = [row(x, anchor=True) for x in ("base", "content only", "style only", "direct merge")]
    references = References(("a.png",), EVIL, EVIL, "0" * 64)
    values = {"direct merge": np.zeros(2), EVIL: np.array([0.5, 0.7])}
    return Comparison(
        str(tmp_path), EVIL, (EVIL,), (0, 1),
        (*anchors, row(EVIL, anchor=False), row("blora", anchor=False, reason=EVIL)),
        verdict(values), references, references, {"clip": {"name": EVIL, "digest": EVIL}},
        {EVIL: EVIL}, (EVIL,), f"lorabake {EVIL}", "k",
    )  # fmt: skip


def test_hostile_texts_stay_texts(hostile: Comparison) -> None:
    html = page(hostile)
    tags = Tags()
    tags.feed(html)
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "iframe", "object", "link", "base", "form"}
    assert not [key for _, own in tags.found for key in own if key.startswith("on")]
    images = [str(own["src"]) for tag, own in tags.found if tag == "img"]
    assert images
    assert all(src.startswith("data:image/png;base64,") for src in images)
    assert {own.get("href") for tag, own in tags.found if tag == "a"} == {"a.png"}
    assert html.count("&lt;script&gt;") > 8
    policy = next(own for _, own in tags.found if "http-equiv" in own)
    assert "default-src 'none'" in str(policy["content"])


def test_nothing_comes_from_elsewhere(hostile: Comparison) -> None:
    assert "http:" not in page(hostile)
    assert "https:" not in page(hostile)
    assert "url(" not in page(hostile)


def test_hostile_texts_in_tables(hostile: Comparison) -> None:
    assert "\x1b" not in text(hostile)
    lines = markdown(hostile).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines if line[:1] == "|"}) == 1
    assert "<script>" not in markdown(hostile).replace("\\<script\\>", "")
    assert "\\input" not in latex(hostile)
    assert r"\textbackslash{}input" in latex(hostile)
    assert len(csv_of(hostile).splitlines()) == 1 + 6 * 2


@pytest.mark.parametrize(
    ("values", "label", "certain", "words"),
    [
        ({"direct merge": [0.1, 0.2, 0.1], "klora": [0.5, 0.6, 0.4]}, "klora", True, "excludes 0"),
        ({"direct merge": [0.1, 0.9, 0.3], "klora": [0.4, 0.2, 0.8]}, "klora", False, "includes 0"),
        ({"direct merge": [0.5, 0.6], "klora": [0.1, 0.1]}, "direct merge", True, "none of the"),
        ({"direct merge": [0.1], "klora": [0.5]}, "klora", False, "raise the number of seeds"),
        ({"direct merge": [0.0], "klora": [0.0]}, None, False, "no picture shows both"),
        ({}, None, False, "could not both be scored"),
        (
            {"direct merge": [0.1, 0.2], "a": [0.5, 0.6], "b": [0.6, 0.5]}, "a", True,
            "cannot be told apart from b",
        ),
    ],
)  # fmt: skip
def test_the_recommendation(values: Any, label: str | None, certain: bool, words: str) -> None:
    found = verdict({k: np.array(v) for k, v in values.items()})
    assert (found.label, found.certain) == (label, certain)
    assert words in found.reason


def test_harmonic_means() -> None:
    a, b = np.array([0.5, 0.2, -0.1, 0.0]), np.array([0.5, 0.6, 0.5, 0.0])
    assert harmonic(a, b).tolist() == pytest.approx([0.5, 0.3, 0.0, 0.0])
