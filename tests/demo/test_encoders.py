"""The encoders that stand for CLIP and DINO load in stock transformers and tell looks apart."""

from __future__ import annotations

import json
import socket
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection, ViTModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from lorabake import demo
from lorabake.demo.figures import SUBJECTS
from lorabake.demo.looks import NEW_STYLES
from lorabake.demo.world import Scene, render

HERE = Path(demo.__file__).parent / "encoders"
NAMES, SIZES = ("clip", "dino"), {"clip": 64, "dino": 96}


def _load(name: str, **given: Any) -> Any:
    kind = CLIPVisionModelWithProjection if name == "clip" else ViTModel
    extra = {} if name == "clip" else {"add_pooling_layer": False}
    return kind.from_pretrained(HERE / name, local_files_only=True, **extra, **given)


@torch.no_grad()
def _embed(name: str, images: list[Image.Image]) -> Tensor:
    processor: Any = AutoImageProcessor.from_pretrained(HERE / name, local_files_only=True)
    out = _load(name)(**processor(images, return_tensors="pt"))
    return out.image_embeds if name == "clip" else out.last_hidden_state[:, 0]


FOUND = 0.4
GROUNDS = (("red", "white"), ("green", "purple"))
SCENES = [
    Scene(figure, colour, ground, style)
    for figure, style, (colour, ground) in product(SUBJECTS, NEW_STYLES, GROUNDS)
]
KNOWN = [
    Scene(figure, colour, ground, style)
    for figure, style, (colour, ground) in product(
        ("star", "moon", "creature"), ("cartoon", "outline", "dotted"), GROUNDS
    )
]


def _cosines(name: str, scenes: list[Scene]) -> dict[tuple[bool, bool], list[float]]:
    """Cosines of all pairs, by whether the two share their figure and whether their style."""
    pictures = [render(scene, np.random.default_rng((77, i))) for i, scene in enumerate(scenes)]
    unit = functional.normalize(_embed(name, [Image.fromarray(p) for p in pictures]), dim=1)
    found: dict[tuple[bool, bool], list[float]] = {}
    for i, j in combinations(range(len(scenes)), 2):
        a, b = scenes[i], scenes[j]
        key = a.figure == b.figure, a.style == b.style
        found.setdefault(key, []).append(float(unit[i] @ unit[j]))
    return found


def _apart(same: list[float], other: list[float]) -> tuple[float, float]:
    """Difference of the means, and how often one of the first is above one of the second."""
    auc = np.mean([a > b for a, b in product(same, other)])
    return float(np.mean(same) - np.mean(other)), float(auc)


@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_style_is_nearer_than_another(name: str) -> None:
    near = _cosines(name, SCENES)
    margin, auc = _apart(near[False, True], near[False, False])
    assert margin > 0.25, (margin, auc)
    assert auc > 0.9, (margin, auc)


def test_clip_tells_held_out_subjects_apart_within_a_style() -> None:
    near = _cosines("clip", SCENES)
    margin, auc = _apart(near[True, True], near[False, True])
    assert margin > 0.08, (margin, auc)
    assert auc > 0.75, (margin, auc)


def test_clip_tells_known_figures_apart_across_styles() -> None:
    near = _cosines("clip", KNOWN)
    margin, auc = _apart(near[True, False], near[False, False])
    assert margin > 0.12, (margin, auc)
    assert auc > 0.65, (margin, auc)


def test_dino_finds_a_picture_again_by_a_part_of_it_mirrored() -> None:
    scenes = [*SCENES, *KNOWN]
    whole = [render(scene, np.random.default_rng((78, i))) for i, scene in enumerate(scenes)]
    parts = [Image.fromarray(p[10:58, 8:56][:, ::-1]).resize((64, 64)) for p in whole]
    first, again = (
        functional.normalize(_embed("dino", images), dim=1)
        for images in ([Image.fromarray(p) for p in whole], parts)
    )
    found = (again @ first.T).argmax(1) == torch.arange(len(scenes))
    assert found.float().mean() > FOUND


@pytest.mark.parametrize("name", NAMES)
def test_stock_transformers_loads_it_without_a_download(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for given in ({}, {"dtype": torch.float32}):
        model, info = _load(name, use_safetensors=True, output_loading_info=True, **given)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not any(info.values()), info
    stored = load_file(HERE / name / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


@pytest.mark.parametrize("name", NAMES)
def test_the_processor_and_the_plain_scale_agree(name: str) -> None:
    picture = np.array(render(SCENES[0], np.random.default_rng(5)))
    plain = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        out = _load(name)(pixel_values=plain)
    wanted = out.image_embeds if name == "clip" else out.last_hidden_state[:, 0]
    assert wanted.shape == (1, SIZES[name])
    torch.testing.assert_close(_embed(name, [Image.fromarray(picture)]), wanted)


def test_both_are_small() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_500_000
    assert all("_name_or_path" not in json.loads(p.read_text()) for p in HERE.rglob("*.json"))
