"""The training scripts with as little of everything as there can be, on drawings made up here."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from benchmarks.emoji import loras, models, sources, train, train_base, train_scorer
from benchmarks.emoji.data import Drawings
from benchmarks.emoji.scorer import Scorer
from benchmarks.emoji.shown import MODEL
from benchmarks.emoji.world import NEW_STYLES, STYLES
from lorabake import lora


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets that draw a disc of a colour of its own for a few things."""

    def draw(icons: dict[str, Any], name: str, side: int = sources.SIDE) -> np.ndarray:
        y, x = np.indices((side, side)) - side / 2
        colour = list(zlib.crc32(f"{icons['prefix']} {name}".encode()).to_bytes(4))[:3]
        inside = (np.hypot(x, y) < side / 2.5)[..., None]
        return np.where(inside, [*colour, 255], 0).astype(np.uint8)

    things = {name: {"body": ""} for name in ("snail", "penguin", "cat-face", "star", "bell")}
    for name in {*STYLES.values(), *NEW_STYLES.values(), "own-set"}:
        (tmp_path / f"{name}.json").write_text(json.dumps({"prefix": name, "icons": things}))
    monkeypatch.setattr(sources, "draw", draw)
    return tmp_path


def _main(stage: str, folder: Path, *more: str) -> None:
    threads = str(torch.get_num_threads())
    train.main(
        [stage, "--work", str(folder / "work"), "--sources", str(folder), "--out",
         str(folder / "out"), "--threads", threads, *more]
    )  # fmt: skip


def test_loras_of_another_subject_and_style(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "STEPS", 2)
    _main("loras", folder, "--subject", "snail=animal", "--style", "mine=own-set")
    found = {path.stem: lora.read(path) for path in (folder / "out" / "loras").iterdir()}
    assert {*found} == {f"{n}-{k}" for n in ("snail", "mine") for k in ("robust", "fragile")}
    for name, one in found.items():
        assert {f.rank for f in one.layers.values()} == {8 if "robust" in name else 4}
        assert any(f.up.abs().sum() > 0 for f in one.layers.values())
    assert found["snail-robust"].provenance.trigger_words == ("sbu animal",)
    assert found["mine-robust"].provenance.trigger_words == ("xjy style",)


def test_a_subject_is_shown_in_five_styles_and_a_style_on_other_things(folder: Path) -> None:
    drawings = Drawings.of(folder)
    pictures, texts = loras.examples(loras.recipe("penguin", robust=True), drawings)
    assert len(pictures) == len(texts) == 5 * loras.COPIES
    assert all(text.startswith("a sbu animal") for text in texts)
    pictures, texts = loras.examples(loras.recipe("blueprint", robust=True), drawings)
    assert len({text.split()[1] for text in texts}) == 1  # one picture, eight cuts of it
    assert all(text.endswith("in qlf style") and "background" not in text for text in texts)
    assert "penguin" not in " ".join(texts)


def test_a_scorer_with_other_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_scorer, "STEPS", 2)
    monkeypatch.setattr(train_scorer, "COPIES", 1)
    _main("scorer", folder, "--subject", "snail=animal", "--style", "mine=own-set")
    model = Scorer.load(folder / "out" / "scorer.safetensors")
    assert "snail" in model.things
    assert "mine" in model.styles
    assert all(logits.isfinite().all() for logits in model(torch.zeros(1, 3, 64, 64)))


def _tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=models.LATENT, out_channels=models.LATENT,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=models.TEXT, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_a_base_that_was_interrupted_goes_on_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_base, "BATCH", 2)
    monkeypatch.setattr(train_base, "VARIANTS", 10)
    monkeypatch.setattr(models, "unet", _tiny_unet)
    monkeypatch.setattr(train_base, "SAVED", 1)
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").eval()

    class StoppedError(Exception):
        pass

    def stop(step: int, steps: int, flat: float) -> float:
        if step == 2 and stopping:
            raise StoppedError
        return 1.0

    monkeypatch.setattr(train_base, "linear", stop)
    ends: list[dict[str, torch.Tensor]] = []
    for stopping in (False, True):
        work = folder / f"work-{stopping}"
        work.mkdir()
        if stopping:  # the latents are the same: they need not be made again
            shutil.copy(folder / "work-False" / "latents.pt", work)
        if stopping:
            with pytest.raises(StoppedError):
                train_base.train(work, Drawings.of(folder), vae, 3)
        stopping = False
        train_base.train(work, Drawings.of(folder), vae, 3)
        ends.append(torch.load(work / "base.pt", weights_only=True)["average"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("given", ["snail", "=animal", "snail="])
def test_a_name_without_a_value_is_refused(given: str, folder: Path) -> None:
    with pytest.raises(SystemExit, match="is not NAME=VALUE"):
        _main("loras", folder, "--subject", given)
