"""A whole comparison on a tiny model: files, scores by a naive script, idempotence, bad bases."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPVisionModelWithProjection, ViTModel

import lorabake
from lorabake import Comparison
from lorabake.compare import rendering
from lorabake.errors import BaseModelError, OverrideError, PairError

from .. import bases, encoders
from . import stage

VARIANTS = ("klora", "klora:alpha=2.5", "dynamic", "blora")
ANCHORS = ["base", "content only", "style only", "direct merge"]
TABLES = ("scores.csv", "scores.json", "report.html", "table.md", "table.tex")


def compare(world: Path, out: Path, **given: Any) -> Comparison:
    own = {k: given.pop(k) for k in ("prompts", "content_images", "style_images") if k in given}
    prompts = own.pop("prompts", stage.PROMPTS)
    return lorabake.compare_fusions(
        world / "cat.safetensors", world / "ink.safetensors", out, world / "model", prompts,
        setup=stage.setup(world, **given), **own,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "out"
    compare(world, out, methods=VARIANTS)
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)


def unit(x: Tensor) -> np.ndarray:
    return (x.double() / x.double().norm(dim=1, keepdim=True)).detach().numpy()


class Naive:
    """Scores by transformers' models, straight from the files."""

    def __init__(self, world: Path) -> None:
        self.clip: Any = CLIPModel.from_pretrained(world / "clip")
        self.dino: Any = ViTModel.from_pretrained(world / "dino", add_pooling_layer=False)
        self.csd: Any = CLIPVisionModelWithProjection.from_pretrained(world / "csd")
        self.seen: dict[tuple[Path, str], np.ndarray] = {}

    def see(self, path: Path, role: str) -> np.ndarray:
        if (path, role) not in self.seen:
            self.seen[path, role] = self.embedded(path, role)
        return self.seen[path, role]

    def embedded(self, path: Path, role: str) -> np.ndarray:
        clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        mean, std = {**encoders.STATISTICS, "csd": clip}[role]
        x = (pixels(path) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        if role == "dino":
            return unit(self.dino(pixel_values=x[None]).last_hidden_state[:, 0])[0]
        if role == "csd":
            return unit(self.csd(pixel_values=x[None]).image_embeds)[0]
        pooled = self.clip.vision_model(pixel_values=x[None]).pooler_output
        return unit(self.clip.visual_projection(pooled))[0]

    def read(self, prompt: str) -> np.ndarray:
        tokens = bases.clip_tokenizer()(prompt, padding="max_length", return_tensors="pt")
        pooled = self.clip.text_model(input_ids=tokens["input_ids"]).pooler_output
        return unit(self.clip.text_projection(pooled))[0]

    def cosine(self, path: Path, others: list[Path], role: str) -> float:
        return float(np.mean([self.see(path, role) @ self.see(x, role) for x in others]))

    def scores(self, path: Path, prompt: str, subject: list[Path], style: list[Path]) -> Any:
        found = {
            "dino": self.cosine(path, subject, "dino"),
            "clip_subject": self.cosine(path, subject, "clip"),
            "csd": self.cosine(path, style, "csd"),
            "clip_style": self.cosine(path, style, "clip"),
            "dino_style": self.cosine(path, style, "dino"),
            "clip_text": float(self.see(path, "clip") @ self.read(prompt)),
        }
        s, t = (found["dino"] + found["clip_subject"]) / 2, (found["csd"] + found["clip_style"]) / 2
        both = 2 * s * t / (s + t) if s > 0 and t > 0 else 0.0
        return found | {"subject": s, "style": t, "harmonic": both}


def test_every_score_by_a_naive_script(world: Path, folder: Path) -> None:
    naive, found = Naive(world), rows(folder)
    assert len(found) == (len(ANCHORS) + len(VARIANTS)) * 2 * 3
    refs = [sorted((folder / "references" / role).glob("*.png")) for role in ("content", "style")]
    assert [len(x) for x in refs] == [4, 4]
    wanted = [
        naive.scores(folder / row["picture"], row["prompt"], *refs)
        for row in found
        if not row["failure"]
    ]
    good = [row for row in found if not row["failure"]]
    for row, scores in zip(good, wanted, strict=True):
        for name, value in scores.items():
            assert float(row[name]) == pytest.approx(value, abs=2e-6), (row["variant"], name)
    spread = [float(row["dino"]) for row in good]
    assert max(spread) - min(spread) > 0.01
    for label in ("base", "style only"):
        leaks = [float(row["leak"]) for row in good if row["variant"] == label]
        assert np.mean(leaks) == pytest.approx(0, abs=0.02)
    for row, scores in zip(good, wanted, strict=True):
        assert float(row["leak"]) == pytest.approx(naive_leak(row, scores, good, wanted), abs=5e-6)


def naive_leak(row: Any, own: Any, found: list[Any], scores: list[Any]) -> float:
    """By the definition in docs/compare.md."""

    def anchor(label: str, name: str) -> float:
        same = [s[name] for r, s in zip(found, scores, strict=True)
                if r["variant"] == label and r["prompt"] == row["prompt"]]  # fmt: skip
        return sum(same) / len(same)

    plain, styled = anchor("base", "style"), anchor("style only", "style")
    low, high = anchor("base", "dino_style"), anchor("style only", "dino_style")
    share = (
        min(2.0, max(-1.0, (own["style"] - plain) / (styled - plain))) if styled > plain else 1.0
    )
    return own["dino_style"] - (low + share * (high - low))


def test_means_and_paired_intervals_by_a_bootstrap(folder: Path) -> None:
    found = rows(folder)
    values = {
        label: np.array([float(r["harmonic"]) for r in found if r["variant"] == label])
        for label in {row["variant"] for row in found}
    }
    picks = np.random.default_rng(0).integers(0, 6, (2000, 6))
    for row in told(folder)["rows"]:
        own = values[row["label"]]
        for stated, sample in (
            (row["means"]["harmonic"], own),
            (row["differences"].get("harmonic"), own - values["direct merge"]),
        ):
            if stated is None:
                assert row["label"] == "direct merge"
                continue
            drawn = np.sort([np.mean([sample[i] for i in pick]) for pick in picks])
            low, high = np.percentile(drawn, [2.5, 97.5])
            assert stated["n"] == 6
            assert stated["mean"] == pytest.approx(sample.mean(), abs=1e-6)
            assert (stated["low"], stated["high"]) == pytest.approx((low, high), abs=1e-6)
    about = told(folder)["bootstrap"]
    assert (about["resamples"], about["level_percent"], about["seed"]) == (2000, 95, 0)


def test_labels_bundles_and_pictures(folder: Path) -> None:
    found = told(folder)
    labels = [row["label"] for row in found["rows"]]
    assert labels == [*ANCHORS, "klora", "klora alpha=2.5", "dynamic", "blora"]
    for row in found["rows"][3:7]:
        bundle = lorabake.load(folder / row["bundle"])
        assert bundle.manifest.digest == row["digest"]
        assert bundle.manifest.method == row["method"]
        for one in row["pictures"]:
            with Image.open(folder / one["path"]) as image:
                about: Any = getattr(image, "text", {})
            assert about["prompt"] == found["prompts"][one["prompt"]]
            assert about["seed"] == str(one["seed"])
            assert about["bundle"] == row["digest"]
            assert json.loads(about["settings"])["options"]["num_inference_steps"] == 1
    assert lorabake.load(folder / "bundles/klora-alpha=2.5.safetensors").manifest.scale is not None
    encoders_told = found["encoders"]
    assert [encoders_told[role]["name"] for role in ("clip", "dino", "csd")] == [
        "clip", "dino", "csd",
    ]  # fmt: skip
    assert all(len(one["digest"]) == 64 for one in encoders_told.values())


def test_a_method_that_cannot_run_here(folder: Path) -> None:
    """B-LoRA's default blocks are SDXL's."""
    (blora,) = [row for row in told(folder)["rows"] if row["label"] == "blora"]
    if not blora["reason"]:
        pytest.skip("the tiny model has such blocks")
    assert blora["failures"] == 6
    assert all(set(x["scores"].values()) == {0.0} for x in blora["pictures"])
    assert "cannot run here" in (folder / "report.html").read_text()


def test_nothing_is_painted_twice(
    world: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    before = {name: (folder / name).read_bytes() for name in TABLES}
    calls: list[tuple[str, list[int]]] = []
    real = rendering.together

    def counted(pipe: Any, prompt: str, seeds: Any, **options: Any) -> Any:
        calls.append((prompt, [*seeds]))
        return real(pipe, prompt, seeds, **options)

    monkeypatch.setattr(rendering, "together", counted)
    assert compare(world, out, methods=VARIANTS).painted == 0
    assert calls == []
    own = str(out).encode()
    for name, data in before.items():
        assert (out / name).read_bytes().replace(own, str(folder).encode()) == data
    gone = out / "images" / "klora" / "p1-s1.png"
    kept = gone.read_bytes()
    gone.unlink()
    damaged = out / "images" / "base" / "p2-s0.png"
    damaged.write_bytes(damaged.read_bytes()[: -damaged.stat().st_size // 4])
    assert compare(world, out, methods=VARIANTS).painted == 2
    assert calls == [(stage.PROMPTS[1], [0, 1, 2, 3]), (stage.PROMPTS[0], [0, 1, 2, 3])]
    assert gone.read_bytes() == kept
    assert (out / "scores.csv").read_bytes() == before["scores.csv"]


def test_two_runs_give_the_same_bytes(world: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(world, out, methods=VARIANTS)
    names = {x.relative_to(folder) for x in folder.rglob("*") if x.is_file()}
    assert names == {x.relative_to(out) for x in out.rglob("*") if x.is_file()}
    for name in names:
        here, there = ((x / name).read_bytes() for x in (out, folder))
        assert here.replace(str(out).encode(), str(folder).encode()) == there, name


def test_a_picture_does_not_depend_on_how_many_are_wanted(
    world: Path, folder: Path, tmp_path: Path
) -> None:
    compare(world, tmp_path / "out", methods=["klora"], seeds=1)
    for path in (tmp_path / "out" / "images").rglob("*.png"):
        wanted = folder / "images" / path.relative_to(tmp_path / "out" / "images")
        assert path.read_bytes() == wanted.read_bytes()


def test_failures_count_as_zero(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rendering.together

    def broken(pipe: Any, prompt: str, seeds: Any, **options: Any) -> Any:
        images = real(pipe, prompt, seeds, **options)
        if seeds[0] < 1000 and "fat" in prompt:
            raise BaseModelError("cannot paint fat cats")
        images[0, 3, 3] = np.nan if seeds[0] < 1000 else images[0, 3, 3]
        images[1] = 0 if seeds[0] < 1000 else images[1]
        return images

    monkeypatch.setattr(rendering, "together", broken)
    found = compare(world, tmp_path / "out", methods=["klora"])
    row = found.row("klora")
    why = [x.failure for x in row.pictures]
    assert why == ["NaN", "black", "", *["cannot paint fat cats."] * 3]
    assert row.failures == 5
    values = [x.scores["dino"] for x in row.pictures]
    assert [v == 0 for v in values] == [True, True, False, True, True, True]
    assert row.means["dino"].mean == pytest.approx(values[2] / 6)
    assert row.means["dino"].n == 6
    assert "failed: NaN" in (tmp_path / "out" / "report.html").read_text()


def test_a_grid_and_load_time_parameters(world: Path, tmp_path: Path) -> None:
    found = compare(
        world, tmp_path / "out", prompts="a cat in ink", seeds=1,
        methods=["klora", "direct:w_c=0.5"], grid=["alpha=1,2", "style_strength=0.5,1"],
        settings=["beta=0.3"],
    )  # fmt: skip
    labels = [row.label for row in found.rows[4:]]
    assert labels == [
        "klora alpha=1 style_strength=0.5", "klora alpha=1 style_strength=1",
        "klora alpha=2 style_strength=0.5", "klora alpha=2 style_strength=1",
        "direct w_c=0.5 style_strength=0.5", "direct w_c=0.5 style_strength=1",
    ]  # fmt: skip
    weak, strong = (
        (tmp_path / "out" / found.row(label).pictures[0].path).read_bytes() for label in labels[:2]
    )
    assert weak != strong
    bundle = lorabake.load(tmp_path / "out" / str(found.row(labels[2]).bundle))
    assert (bundle.manifest.params["alpha"], bundle.manifest.params["beta"]) == (2, 0.3)


def test_a_bundle_of_ones_own_and_given_images(world: Path, folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "mine.safetensors"
    shutil.copy(folder / "bundles" / "klora.safetensors", bundle)
    images = tmp_path / "subject"
    images.mkdir()
    for i in range(2):
        shutil.copy(folder / "references" / "content" / f"s{1000000 + i}.png", images)
    found = compare(
        world, tmp_path / "out", bundles=[f"{bundle}:alpha=0.2"], content_images=images,
        style_images=folder / "references" / "style" / "s1000000.png",
    )  # fmt: skip
    assert found.subject.prompt is None
    assert not (tmp_path / "out" / "references").exists()
    label = "mine alpha=0.2"
    naive = Naive(world)
    one = found.row(label).pictures[0]
    wanted = naive.cosine(tmp_path / "out" / one.path, sorted(images.glob("*")), "dino")
    assert one.scores["dino"] == pytest.approx(wanted, abs=2e-6)
    with pytest.raises(OverrideError, match="alpha"):
        compare(world, tmp_path / "other", bundles=[f"{bundle}:alpha=much"])


def test_without_encoders_there_are_pictures(world: Path, tmp_path: Path) -> None:
    names = dict.fromkeys(("clip", "dino", "csd"), str(tmp_path / "nowhere"))
    found = compare(world, tmp_path / "out", methods=["klora"], seeds=1, **names)
    assert set(found.left_out) == {"CLIP-I", "DINO and leak", "CSD", "CLIP-T"}
    assert found.verdict.label is None
    assert found.scored == ()
    assert found.painted == 5 * 2 + 8
    assert "Left out: CSD" in (tmp_path / "out" / "report.html").read_text()
    some = compare(world, tmp_path / "out", methods=["klora"], seeds=1, clip=names["clip"])
    assert some.painted == 0
    assert some.scored == ("dino", "csd", "subject", "style", "harmonic", "leak")


def test_loras_of_other_families(world: Path, tmp_path: Path) -> None:
    shapes = {
        "transformer.transformer_blocks.0.attn.to_q": (16, 16),
        "transformer.single_transformer_blocks.0.attn.to_q": (16, 16),
    }
    stage.write_lora(tmp_path / "flux.safetensors", shapes, "peft", 2, keep=1.0)
    with pytest.raises(PairError):
        lorabake.compare_fusions(
            world / "cat.safetensors", tmp_path / "flux.safetensors", tmp_path / "out",
            world / "model", "a cat", setup=stage.setup(world),
        )  # fmt: skip
    with pytest.raises(PairError, match="do not fit the base model"):
        lorabake.compare_fusions(
            tmp_path / "flux.safetensors", tmp_path / "flux.safetensors", tmp_path / "out",
            world / "model", "a cat", setup=stage.setup(world),
        )  # fmt: skip
