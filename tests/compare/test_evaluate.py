"""Many pairs: the table, shards, anchors in common, and a run that is killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lorabake
from lorabake import Evaluation
from lorabake.compare import datasets, pairs, rendering
from lorabake.errors import RecipeError

from . import stage

PAIRS = (("cat", "ink"), ("cat", "oil"), ("dog", "ink"))


@pytest.fixture(scope="module")
def table(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of four LoRAs, one prompt; paths from the file's folder."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    rows = [f"{c}.safetensors,{s}.safetensors,a pet\n" for c, s in PAIRS]
    path.write_text("content,style,prompts\n" + "".join(rows))
    for name in ("cat", "dog", "ink", "oil"):
        (path.parent / f"{name}.safetensors").symlink_to(world / f"{name}.safetensors")
    return path


def evaluate(world: Path, table: Path, out: Path, **given: Any) -> Evaluation:
    setup = stage.setup(world, methods=["klora"], seeds=2, steps=1)
    return lorabake.evaluate(table, out, world / "model", setup=setup, **given)


@pytest.fixture(scope="module")
def whole(
    world: Path, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """An evaluation, and the prompts of all calls of the pipeline."""
    out, calls = tmp_path_factory.mktemp("whole") / "out", list[str]()
    real = rendering.together

    def counted(pipe: Any, prompt: str, seeds: Any, **options: Any) -> Any:
        calls.append(prompt)
        return real(pipe, prompt, seeds, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "together", counted)
        assert evaluate(world, table, out).missing == ()
        count = len(calls)
        evaluate(world, table, out)
        assert len(calls) == count
    return out, calls


def test_the_table_is_over_pairs(whole: tuple[Path, list[str]]) -> None:
    folder, _ = whole
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 * 2
    names = list(dict.fromkeys(row["pair"] for row in rows))
    assert names == ["cat-ink", "cat-oil", "dog-ink"]
    told = json.loads((folder / "scores.json").read_text())

    def means(label: str, score: str) -> np.ndarray:
        own = [[float(r[score]) for r in rows if (r["pair"], r["variant"]) == (name, label)]
               for name in names]  # fmt: skip
        return np.array(own).mean(1)

    picks = np.random.default_rng(0).integers(0, 3, (2000, 3))
    for line in told["lines"]:
        own = means(line["label"], "harmonic")
        low, high = np.percentile(own[picks].mean(1), [2.5, 97.5])
        stated = line["means"]["harmonic"]
        assert stated["mean"] == pytest.approx(own.mean(), abs=2e-6)
        assert (stated["low"], stated["high"]) == pytest.approx((low, high), abs=2e-6)
        if line["label"] != "direct merge":
            change = own - means("direct merge", "harmonic")
            assert line["differences"]["harmonic"]["mean"] == pytest.approx(change.mean(), abs=2e-6)
    head = (folder / "table.md").read_text().splitlines()[0]
    columns = ["Style Sim", "CLIP score", "DINO", "CSD", "CLIP-T", "leak", "harmonic mean"]
    assert [x.strip() for x in head.split("|")][2:9] == columns


def test_anchors_in_common_are_painted_once(whole: tuple[Path, list[str]]) -> None:
    _, calls = whole
    # Base once, each LoRA alone once, merge and method for each pair; each LoRA's references.
    assert calls.count("a pet") == 1 + 4 + 2 * 3
    assert [calls.count(word) for word in ("cat", "dog", "ink style", "oil style")] == [1] * 4


def test_killed_and_gone_on_with_in_shards(
    world: Path, table: Path, whole: tuple[Path, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        "eval", str(table), "--base", str(world / "model"), "-o", str(out), "--method", "klora",
        "--seeds", "2", "--steps", "1", "--guidance", "2.0",
        *(x for role in ("clip", "dino", "csd") for x in (f"--{role}", str(world / role))),
    ]  # fmt: skip
    running = subprocess.Popen(
        [sys.executable, "-c", f"from lorabake.cli import cli; cli({command!r})"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.time() + 120
    while len([*out.rglob("images/*/*.png")]) < 13 and time.time() < deadline:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first = evaluate(world, table, out, shard=(2, 2))
    assert "dog-ink" in first.missing
    assert f"{3 - len(first.missing)} of 3 pairs are done" in str(first)
    assert not (out / "table.md").exists()
    assert evaluate(world, table, out, shard=(1, 2)).missing == ()
    for name in ("table.md", "table.tex", "scores.csv", "scores.json"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_pairs_file(tmp_path: Path) -> None:
    (tmp_path / "cat.safetensors").touch()
    path = tmp_path / "p.csv"
    path.write_text(
        "name,content,style,prompts,content_images,style_prompt\n"
        'one,cat.safetensors,user/ink, a cat | ,,"in ink, please"\n\n'
    )
    (found,) = pairs.read(path, "model")
    assert found.name == "one"
    assert found.request.content == str(tmp_path / "cat.safetensors")
    assert found.request.style == "user/ink"
    assert found.request.prompts == ("a cat",)
    assert (found.request.content_images, found.request.style_prompt) == (None, "in ink, please")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("content,prompts\na,b\n", "has no column style"),
        ("content,style,prompts,promt\na,b,c,d\n", "unknown columns: promt"),
        ("content,style,prompts\n", "has no pairs"),
        ("", "has no column content, style, prompts"),
        ("content,style,prompts\na,,c\n", "row 2: has no style"),
        ("content,style,prompts\na,b,|\n", "has no prompts"),
        ("content,style,prompts\na,b,c,d\n", "has 4 cells for 3 columns"),
        ("content,style,prompts\na,b,c\na,b,d\n", "several rows are called a-b"),
        ('content,style,prompts\n"a,b,c\n', "is not a CSV file"),
    ],
)
def test_wrong_pairs_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        pairs.read(path, "model")


def test_the_layouts_of_public_data_sets(tmp_path: Path) -> None:
    subjects, styles, loras = (tmp_path / x for x in ("dataset", "styles", "loras"))
    for folder in (subjects / "dog6", subjects / "bear_plushie", styles, loras):
        folder.mkdir(parents=True)
    for path in (subjects / "dog6" / "00.jpg", subjects / "bear_plushie" / "00.jpg",
                 styles / "image_01_01.jpg", styles / "image_02_06.jpg"):  # fmt: skip
        path.touch()
    (subjects / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\nbear_plushie,stuffed animal\ndog6,dog\n\nPrompts\n"
        "prompt_list = [\n'a {0} {1} in the snow'.format(unique_token, class_token),\n]\n"
    )
    (styles / "data.json").write_text(
        '{"image_01_01.jpg": ["A bay", "in watercolor painting style"],'
        ' "image_02_06.jpg": ["A mushroom", "in glowing style"], "gone.jpg": ["A", "in B style"]}'
    )
    for name in ("dog6", "bear_plushie", "image_01_01", "image_02_06"):
        (loras / f"{name}.safetensors").touch()
    found = datasets.dreambooth(subjects)
    assert [(x.name, x.noun) for x in found] == [
        ("bear_plushie", "stuffed animal"),
        ("dog6", "dog"),
    ]
    rows = datasets.pairs(found, datasets.styledrop(styles), loras)
    assert len(rows) == 4
    assert rows[0]["prompts"] == "a sks stuffed animal in watercolor painting style"
    assert rows[0]["style_prompt"] == "A bay in watercolor painting style"
    pairs.write(rows, tmp_path / "pairs.csv")
    assert len(pairs.read(tmp_path / "pairs.csv", "model")) == 4
    (styles / "data.json").unlink()
    (styles / "styles.txt").write_text("image_02_06.jpg,A mushroom in glowing style\n")
    (style,) = datasets.styledrop(styles)
    assert (style.shows, style.manner) == ("A mushroom", "in glowing style")
    (loras / "dog6.safetensors").unlink()
    with pytest.raises(RecipeError, match="has no LoRA dog6"):
        datasets.pairs(found, [style], loras)
