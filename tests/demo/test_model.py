"""What ships must load in stock diffusers, without a download and without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from lorabake import demo
from lorabake.demo.figures import SUBJECTS
from lorabake.demo.looks import NEW_STYLES

HERE = Path(demo.__file__).parent
LORAS = sorted((HERE / "loras").glob("*.safetensors"))


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(HERE / "model", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sample(pipe: StableDiffusionPipeline, prompt: str) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    out = pipe(prompt, num_inference_steps=2, guidance_scale=3, generator=generator)
    return np.asarray(cast("Any", out).images[0])


def test_the_stock_pipeline_samples_and_repeats_itself(pipe: StableDiffusionPipeline) -> None:
    first, again = (_sample(pipe, "a red star on a blue background") for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)


def test_there_is_a_lora_for_every_held_out_word() -> None:
    assert {path.stem for path in LORAS} == {*SUBJECTS, *NEW_STYLES}


@pytest.mark.parametrize("path", LORAS, ids=lambda path: path.stem)
def test_each_lora_loads_in_stock_diffusers(pipe: StableDiffusionPipeline, path: Path) -> None:
    prompt = f"a {path.stem}" if path.stem in SUBJECTS else f"a creature in {path.stem} style"
    plain = _sample(pipe, prompt)
    pipe.load_lora_weights(str(path), adapter_name=path.stem)
    try:
        assert pipe.get_list_adapters() == {"unet": [path.stem]}
        assert np.abs(_sample(pipe, prompt).astype(int) - plain).mean() > 1
    finally:
        pipe.unload_lora_weights()
    assert np.array_equal(_sample(pipe, prompt), plain)


def test_all_that_ships_is_small_and_names_no_machine() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert not [
        path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text()
    ]
