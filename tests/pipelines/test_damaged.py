"""Model folders that something is wrong with: one error class, that names the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabake import pipelines
from lorabake.errors import BaseModelError
from lorabake.lora import pair, read
from lorabake.pipelines.blame import blame
from lorabake.runtime.fused import Fused
from lorabake.runtime.patch import Pair
from lorabake.runtime.target import Target

from .. import tiny
from ..oracle import write_lora

CPU = torch.device("cpu")
INDEX = "model_index.json"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_sd15(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def text(file: str, content: str) -> Damage:
    return lambda model: (model / file).write_text(content)


def field(file: str, **values: Any) -> Damage:
    def damage(model: Path) -> None:
        config = json.loads((model / file).read_text()) | values
        (model / file).write_text(json.dumps(config))

    return damage


def without(part: str) -> Damage:
    return lambda model: shutil.rmtree(model / part)


def cut(file: str) -> Damage:
    return lambda model: (model / file).write_bytes((model / file).read_bytes()[:-100])


TEXT, UNET, STEPS = (
    "text_encoder/config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (cut("text_encoder/model.safetensors"), "not fully covered"),
    "no tokenizer": (without("tokenizer"), "lacks the folder of its part tokenizer"),
    "index is a list": (text(INDEX, "[]"), "as a diffusers model"),
    "index is deep": (text(INDEX, "[" * 100_000), "recursion"),
    "no class": (text(INDEX, "{}"), "names no pipeline"),
    "class is a number": (field(INDEX, _class_name=5), "names no pipeline"),
    "class is unknown": (field(INDEX, _class_name="Zz"), "names no pipeline"),
    "needs an image": (field(INDEX, _class_name="StableDiffusionImg2ImgPipeline"), "text alone"),
    "needs a map": (field(INDEX, _class_name="StableDiffusionControlNetPipeline"), "text alone"),
    "takes no prompt": (field(INDEX, _class_name="DDPMPipeline"), "text alone"),
    "no denoiser": (field(INDEX, unet=[None, None]), "has no unet or transformer"),
    "width is text": (field(TEXT, hidden_size="x"), "hidden_size"),
    "odd heads": (field(TEXT, num_attention_heads=7), "attention heads"),
    "unknown betas": (field(STEPS, beta_schedule="zz"), "zz is not implemented"),
    "steps are text": (field(STEPS, num_train_timesteps="x"), "as a diffusers model"),
    "no heads": (field(UNET, attention_head_dim=0), "division"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_models_are_refused(case: str, model: Path) -> None:
    damage, message = DAMAGES[case]
    damage(model)
    with pytest.raises(BaseModelError, match=message) as caught:
        pipelines.load(model, device=CPU)
    assert caught.value.where == str(model)
    assert caught.value.advice
    assert len(str(caught.value)) < 1000 + 2 * len(str(model))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (text(INDEX, "[" * 100_000), "recursion"),
        (field(UNET, attention_head_dim=0), "division"),
        (text(UNET, "[" * 100_000), "recursion"),
        (field(INDEX, unet=["diffusers", "logging"]), "from_config"),
        (without("unet"), "lacks the folder of its part unet"),
    ],
)
def test_damaged_models_are_refused_when_layers_are_looked_up(
    damage: Damage, message: str, model: Path, tmp_path: Path
) -> None:
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1.to_q" in n}
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for seed, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed)
    pairs = pair(*map(read, paths))
    assert pipelines.misfits(model, pairs) == []
    damage(model)
    with pytest.raises(BaseModelError, match=message):
        pipelines.misfits(model, pairs)


def test_a_model_whose_parts_do_not_go_together(model: Path) -> None:
    field(STEPS, prediction_type="zz")(model)
    pipe = pipelines.load(model, device=CPU)
    with pytest.raises(BaseModelError, match="cannot paint with these parts and options") as caught:
        pipelines.render(pipe, "a cat", [0], num_inference_steps=1)
    assert caught.value.where == str(model)


@pytest.mark.parametrize("name", ["x" * 5000, "~nosuchuser/model", "a\0b", "", "x/" * 2500])
def test_names_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(BaseModelError, match="no such folder") as caught:
        pipelines.load(name, device=CPU)
    assert len(str(caught.value)) < 700


def test_a_home_folder(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(whole.parent))
    assert type(pipelines.load("~/model", device=CPU)).__name__ == "StableDiffusionPipeline"


def test_a_filter_that_is_not_there_is_not_missed(model: Path) -> None:
    field(INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])(model)
    assert pipelines.load(model, device=CPU).safety_checker is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_what_is_not_the_models_fault(error: type[BaseException]) -> None:
    with pytest.raises(error), blame("x", where="", advice=""):
        raise error


def test_a_defect_of_ours_inside_of_theirs_stays_one(whole: Path) -> None:
    def defect(_: int) -> Pair:
        raise ValueError("a defect")

    pipe = pipelines.load(whole, device=CPU)
    patch = Fused(Target(pipe.unet.conv_in, (pipe.unet,), "conv_in"), defect, "device")
    pipe.unet.register_forward_pre_hook(lambda *_: patch.set((1.0, 0.0)))
    with pytest.raises(ValueError, match="a defect"):
        pipelines.render(pipe, "a cat", [0], num_inference_steps=1)
