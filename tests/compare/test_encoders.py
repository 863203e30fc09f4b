"""The encoders of scores, against transformers' own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

from lorabake.compare.judges import load_judges, usual
from lorabake.errors import BaseModelError
from lorabake.pipelines import csd, encoders, texts

from .. import bases
from . import stage

CPU = torch.device("cpu")


def test_a_port_of_csd_is_the_model_that_it_was_made_of(world: Path, tmp_path: Path) -> None:
    stage.port(stage.descriptor(), tmp_path / "port")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found, wanted = (csd.load(x, device=CPU) for x in (tmp_path / "port", world / "csd"))
    with torch.no_grad():
        torch.testing.assert_close(found(images), wanted(images))
        assert (found(images)[0] - found(images)[1]).abs().max() > 1e-3
    data = (tmp_path / "port" / "model.safetensors").read_bytes()
    assert csd.digest(tmp_path / "port") == hashlib.sha256(data).hexdigest()


def test_the_text_tower(world: Path) -> None:
    prompts = ["a cat", "a long cat in an ink style that is longer than the model can read"]
    model: Any = CLIPModel.from_pretrained(world / "clip")
    tokens = bases.clip_tokenizer()(
        prompts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model.text_model(input_ids=tokens["input_ids"]).pooler_output
        wanted = model.text_projection(hidden)
    torch.testing.assert_close(texts.load(world / "clip", device=CPU)(prompts), wanted)


def test_what_is_not_there_is_left_out_by_name(world: Path, tmp_path: Path) -> None:
    encoders_of = {"clip": None, "dino": world / "dino", "csd": tmp_path / "nowhere"}
    (tmp_path / "config.json").write_text("{}")
    found = load_judges("a/model", encoders_of | {"clip": tmp_path}, CPU)
    assert [*found.sees] == ["dino"]
    assert set(found.left_out) == {"CLIP-I", "CSD", "CLIP-T"}
    digest = hashlib.sha256((world / "dino" / "model.safetensors").read_bytes()).hexdigest()
    assert (found.judges["dino"].name, found.judges["dino"].digest) == ("dino", digest)
    assert encoders.digest(world / "dino") == digest


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refused(repo: str) -> None:
        asked.append(repo)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(encoders, "reach", refused)
    found = load_judges("a/model", {"csd": "user/other"}, CPU)
    assert asked == [encoders.CLIP, encoders.DINO, "user/other"]
    assert not found.sees
    assert "cannot be had from the hub (ConnectionError: nobody there)" in found.left_out["CSD"]


def test_clip_without_a_text_tower(tmp_path: Path) -> None:
    stage.encoders.save("clip", tmp_path / "clip")
    with pytest.raises(BaseModelError, match="has no text tower"):
        texts.load(tmp_path / "clip", device=CPU)
    found = load_judges("a/model", dict.fromkeys(("clip", "dino", "csd"), tmp_path / "clip"), CPU)
    assert set(found.left_out) == {"CLIP-T"}


def test_the_shipped_model_has_its_own_encoders() -> None:
    demo = Path(csd.__file__).parents[1] / "demo"
    assert usual(demo / "model") == {
        role: str(demo / "encoders" / role) for role in ("clip", "dino", "csd")
    }
    assert usual("stabilityai/sdxl")["clip"] == "openai/clip-vit-base-patch32"
