from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import lorabake
from lorabake import bundle as bundles
from lorabake.bundle.write import write
from lorabake.errors import BaseModelError, OutputError, PairError, RecipeError, VerifyError

from . import tiny
from .oracle import Shapes, sha256, write_lora

SHAPES: Shapes = {
    f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn1.{p}": (16, 16)
    for i in range(3)
    for p in ("to_q", "to_k", "to_v", "to_out.0")
}


@pytest.fixture
def loras(tmp_path: Path) -> tuple[Path, Path]:
    content, style = tmp_path / "cat.safetensors", tmp_path / "ink.safetensors"
    write_lora(content, SHAPES, "kohya", 0)
    write_lora(style, SHAPES, "peft", 1)
    return content, style


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_report(loras: tuple[Path, Path], tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stages[stage] = (done, total)

    out = tmp_path / "bundle.safetensors"
    report = lorabake.make(*loras, out, progress=progress)
    value = json.loads(json.dumps(report.to_json()))
    assert value["output"] == str(out)
    assert value["method"] == "klora"
    assert value["layers"] == len(lorabake.load(out).manifest.layers)
    assert value["checks"]["compared"] > value["layers"]
    assert value["notes"]["gamma"] > 0
    assert value["seconds"] > 0
    assert str(out) in str(report)
    assert list(stages) == ["fusing", "writing", "verifying"]
    assert all(done == total for done, total in stages.values())


def test_the_half_of_guidance_is_a_field_of_the_file(
    loras: tuple[Path, Path], tmp_path: Path
) -> None:
    both, again, one = (tmp_path / f"{name}.safetensors" for name in "abc")
    lorabake.make(*loras, both)
    lorabake.make(*loras, again, half="both")
    report = lorabake.make(*loras, one, half="conditional")
    assert both.read_bytes() == again.read_bytes()
    assert report.half == report.to_json()["half"] == "conditional"
    assert "conditional half of guidance only" in str(report)
    first, second = (lorabake.load(path).manifest for path in (both, one))
    assert (first.format, first.half) == ((1, 0), "both")
    assert second == replace(first, format=(1, 3), half="conditional")


def test_strengths_are_folded_in_before_the_method_looks(
    loras: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, strong = tmp_path / "plain.safetensors", tmp_path / "strong.safetensors"
    lorabake.make(*loras, plain)
    lorabake.make(*loras, strong, style_strength=4.0)
    one, other = (lorabake.load(path).manifest for path in (plain, strong))
    assert one.scale is not None
    assert other.scale is not None
    # Gamma takes it out again: the selection is the same, the style is four times as strong.
    assert other.scale.gamma == pytest.approx(one.scale.gamma / 4)
    assert [source.strength for source in other.sources] == [1.0, 4.0]
    selections = [lorabake.load(path).selection(50) for path in (plain, strong)]
    assert selections[0].equal(selections[1])


def test_direct_weights_multiply_with_strengths(loras: tuple[Path, Path], tmp_path: Path) -> None:
    out, same = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    lorabake.make(*loras, out, method="direct", w_c=0.5, content_strength=0.5)
    lorabake.make(*loras, same, method="direct", w_c=0.25)
    assert [s.strength for s in lorabake.load(out).manifest.sources] == [0.25, 1.0]
    one, other = load_file(out), load_file(same)
    assert all(one[key].equal(other[key]) for key in one)


def test_existing_output_needs_force(loras: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        lorabake.make(*loras, out)
    assert out.read_bytes() == b"old"
    lorabake.make(*loras, out, force=True)
    lorabake.load(out)


@pytest.mark.parametrize("which", [0, 1])
def test_an_input_is_never_replaced(loras: tuple[Path, Path], tmp_path: Path, which: int) -> None:
    before = sha256(loras[which])
    folder = tmp_path / "folder"
    folder.mkdir()
    linked = folder / "pytorch_lora_weights.safetensors"
    linked.symlink_to(loras[which])
    with pytest.raises(OutputError, match="one of the inputs"):
        lorabake.make(*loras, linked, force=True)
    sources = (folder, loras[1 - which])
    with pytest.raises(OutputError, match="one of the inputs"):
        lorabake.make(*sources, loras[which], force=True)
    assert sha256(loras[which]) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int8"},
        {"device": "toaster"},
        {"content_strength": 0.0},
        {"style_strength": float("nan")},
        {"alpha": "much"},
        {"nonsense": 1},
    ],
)
def test_bad_values_are_refused_first(
    loras: tuple[Path, Path], tmp_path: Path, wrong: dict[str, object]
) -> None:
    loras[0].unlink()
    before = names(tmp_path)
    with pytest.raises(RecipeError):
        lorabake.make(*loras, tmp_path / "bundle.safetensors", **wrong)  # pyright: ignore[reportArgumentType] - wrong on purpose
    assert names(tmp_path) == before


def test_what_fails_verification_is_not_left_behind(
    loras: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(*args: object, **kwargs: object) -> str:
        file, manifest, pairs, dtype = args
        weaker = bundles.strengthen(pairs, (1.0, 0.99))  # pyright: ignore[reportArgumentType] - as given
        return write(file, manifest, weaker, dtype, **kwargs)  # pyright: ignore[reportArgumentType] - as given

    monkeypatch.setattr(bundles, "write", careless)
    before = names(tmp_path)
    with pytest.raises(VerifyError, match=r"differs from the style LoRA by 0\.01"):
        lorabake.make(*loras, tmp_path / "bundle.safetensors")
    assert names(tmp_path) == before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_sd15(tmp_path_factory.mktemp("base") / "tiny-model")


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return tiny.shapes(tiny.sd15()[0])


def pair_for(shapes: Shapes, folder: Path) -> tuple[Path, Path]:
    content, style = folder / "a.safetensors", folder / "b.safetensors"
    write_lora(content, shapes, "kohya", 0)
    write_lora(style, shapes, "peft", 1)
    return content, style


def test_a_base_that_fits_is_recorded_by_name(model: Path, shapes: Shapes, tmp_path: Path) -> None:
    loras = pair_for(shapes, tmp_path)
    for base, recorded in ((model, "tiny-model"), ("user/some-model", "user/some-model")):
        lorabake.make(*loras, tmp_path / "out.safetensors", base=base, force=True)
        assert lorabake.load(tmp_path / "out.safetensors").manifest.base == recorded


def test_a_base_in_the_home_folder_is_not_recorded_by_path(
    model: Path, shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    lorabake.make(*pair_for(shapes, tmp_path), tmp_path / "out.safetensors", base="~/tiny-model")
    assert lorabake.load(tmp_path / "out.safetensors").manifest.base == "tiny-model"


def test_a_base_that_does_not_fit(model: Path, shapes: Shapes, tmp_path: Path) -> None:
    wider = {
        name: (2 * out, *rest) if "attn2" in name else (out, *rest)
        for name, (out, *rest) in shapes.items()
    }
    wider["unet.up_blocks.3.resnets.0.conv1"] = (8, 8, 3, 3)
    with pytest.raises(PairError, match=r"do not fit the base model.*attn2") as caught:
        lorabake.make(*pair_for(wider, tmp_path), tmp_path / "out.safetensors", base=model)
    assert "up_blocks.3" in str(caught.value) or "more" in str(caught.value)


def test_a_base_that_is_none(model: Path, loras: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    shutil.copytree(model, broken)
    (broken / "unet" / "config.json").write_text("{")
    for base, message in (
        (empty, "no model_index.json"),
        (tmp_path / "nowhere", "no such folder"),
        (loras[0], "is a file"),
        (broken, "cannot be loaded"),
    ):
        with pytest.raises(BaseModelError, match=message):
            lorabake.make(*loras, out, base=base)
    assert not out.exists()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch, lorabake
torch.set_num_threads(1)
content, style, out = map(Path, sys.argv[1:4])
events = []
lorabake.make(content, style, out, progress=lambda *event: events.append(event))
whole, dice, die = out.read_bytes(), random.Random(0), signal.SIGKILL
start = time.perf_counter()
lorabake.make(content, style, out, force=True)
duration = time.perf_counter() - start
for i in range(int(sys.argv[4])):
    old = b"old" if i % 2 else None
    out.unlink() if old is None else out.write_bytes(old)
    last, seen = dice.randrange(len(events)), []
    child = os.fork()
    if child == 0:
        def progress(*event):
            seen.append(event)
            if i % 3 and len(seen) > last:
                os.kill(os.getpid(), die)
        lorabake.make(content, style, out, force=True, progress=progress)
        os._exit(0)
    if i % 3 == 0:  # any moment; the others are within the work, before the rename
        time.sleep(dice.uniform(0, 1.5 * duration))
        os.kill(child, die)
    os.waitpid(child, 0)
    state = out.read_bytes() if out.exists() else None
    assert state == old or (i % 3 == 0 and state == whole), f"kill {i} left {state!r:.80}"
    print("whole" if state == whole else "as before", end=" ")
    out.write_bytes(whole)
lorabake.make(content, style, out, force=True)
assert out.read_bytes() == whole
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    shapes: Shapes = dict.fromkeys(SHAPES, (256, 256))
    content, style = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_lora(content, shapes, "kohya", 0)
    write_lora(style, shapes, "peft", 1)
    kills = os.environ.get("LORABAKE_KILLS", "15")
    command = [sys.executable, "-c", KILLED, content, style, tmp_path / "out.safetensors", kills]
    result = subprocess.run(
        [*map(str, command)], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)  # noqa: T201 - how many kills came too late, for a run by hand
