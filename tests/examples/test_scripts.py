"""The scripts for diffusers, on the toy model that ships with lorabake."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import lorabake
from lorabake.demo.showcase import HERE, MODEL, STYLE, SUBJECT
from lorabake.pipelines.quiet import quiet

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = "a green tikku creature on a yellow background in glass style"
WORDS = "tikku creature, glass style"
STEPS = 2
SOURCES = [HERE / "loras" / f"{name}.safetensors" for name in (SUBJECT, STYLE)]
lib: Any = diffusers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "b.safetensors"
    content, style = SOURCES
    lorabake.make(content, style, path)
    return path


@pytest.fixture(scope="module")
def pipe() -> Any:
    with quiet():
        pipe = lib.DiffusionPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def base(pipe: Any) -> np.ndarray:
    """What the model paints without any LoRA."""
    return painted(pipe)


def painted(pipe: Any, prompt: str = PROMPT) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pixels(pipe(prompt, num_inference_steps=STEPS, generator=generator).images[0])


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def load(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def run(main: Callable[[list[str]], Any], bundle: Path, output: Path, *more: str) -> Any:
    arguments = [str(bundle), str(MODEL), "-o", str(output), "--steps", str(STEPS), *more]
    with quiet():
        return main(arguments)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_plain_diffusers_paints_the_direct_merge(
    bundle: Path,
    pipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load(monkeypatch, EXAMPLES, "plain_diffusers")
    run(script.main, bundle, tmp_path / "out.png")
    try:
        for name, path in zip(("content", "style"), SOURCES, strict=True):
            pipe.load_lora_weights(path, adapter_name=name)
        pipe.set_adapters(["content", "style"], [1.0, 1.0])
        merged = painted(pipe, WORDS)
    finally:
        pipe.unload_lora_weights()
    with Image.open(tmp_path / "out.png") as image:
        assert np.abs(pixels(image) - merged).max() <= 2
    assert np.abs(painted(pipe, WORDS) - merged).max() > 50
    told = capsys.readouterr().out
    assert "klora for sd15" in told
    assert "content: tikku; trigger words: tikku" in told
    assert "switch from one LoRA to the other" in told
    with pytest.raises(SystemExit, match="no bundle"):
        run(script.main, SOURCES[0], tmp_path / "out.png")


def test_the_vendored_runtime_paints_what_lorabake_paints(
    bundle: Path,
    pipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with lorabake.load(bundle).attach(pipe):
        expected = painted(pipe)
    home, skip = tmp_path / "painter", shutil.ignore_patterns("__pycache__")
    shutil.copytree(EXAMPLES.parent / "lorabake" / "runtime", home / "runtime", ignore=skip)
    shutil.copy(EXAMPLES / "vendored_runtime.py", home / "__main__.py")
    with monkeypatch.context() as alone:
        for name in [name for name in sys.modules if name.split(".")[0] == "lorabake"]:
            alone.setitem(sys.modules, name, None)  # importing it fails
        main = load(alone, tmp_path, "painter.__main__").main
        assert run(main, bundle, tmp_path / "out.png", "--prompt", PROMPT) == 0
        assert run(main, SOURCES[0], tmp_path / "none.png", "--prompt", PROMPT) == 2
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(pixels(image), expected)
    assert "layers fused" in (told := capsys.readouterr()).out
    assert "an ordinary LoRA, not a bundle" in told.err
    assert not (tmp_path / "none.png").exists()


def test_the_snippet_renders_and_leaves_the_pipeline_alone(
    bundle: Path, pipe: Any, base: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = load(monkeypatch, EXAMPLES, "app_snippet")
    with lorabake.load(bundle).attach(pipe, content_strength=0.8, style_strength=1.1):
        expected = painted(pipe)
    told: list[tuple[int, int]] = []
    image = app.render(
        pipe, bundle, PROMPT, content_strength=0.8, style_strength=1.1, steps=STEPS,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert np.array_equal(pixels(image), expected)
    assert told == [(i, STEPS) for i in (1, 2)]

    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        app.render(pipe, bundle, PROMPT, steps=STEPS, progress=stopped)
    assert np.array_equal(painted(pipe), base)
    assert not app.BUSY.locked()
    with pytest.raises(app.RenderError, match="an ordinary LoRA, not a bundle"):
        app.render(pipe, SOURCES[0], PROMPT)
    with pytest.raises(app.RenderError, match=r"nowhere.safetensors"):
        app.render(pipe, tmp_path / "nowhere.safetensors", PROMPT)


def test_the_snippet_opens_a_bundle_once_until_it_changes(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = load(monkeypatch, EXAMPLES, "app_snippet")
    path = tmp_path / "b.safetensors"
    shutil.copy(bundle, path)
    first = app.opened(path, path.stat().st_mtime_ns)
    assert app.opened(path, path.stat().st_mtime_ns) is first
    assert app.opened(path, path.stat().st_mtime_ns + 1) is not first
