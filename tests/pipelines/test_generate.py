from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lorabake
from lorabake import pipelines
from lorabake.errors import AttachError, BaseModelError, OverrideError
from lorabake.pipelines.generate import variants
from lorabake.runtime import Bundle
from lorabake.runtime.plan import Half
from lorabake.runtime.report import Report

from .. import tiny
from ..oracle import write_lora

CPU = torch.device("cpu")
PROMPT = "a cat in ink"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_sd15(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("loras")
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn" in n}
    paths = (folder / "a.safetensors", folder / "b.safetensors")
    for seed, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed)
    lorabake.make(*paths, folder / "bundle.safetensors")
    return lorabake.load(folder / "bundle.safetensors")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_compare_renders_every_variant(model: Path, bundle: Bundle) -> None:
    calls: list[tuple[int, int]] = []
    images = pipelines.generate(
        bundle, model, PROMPT, seeds=(1, 2), compare=True, device=CPU, num_inference_steps=2,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert list(images) == ["base", "content only", "style only", "direct merge", "klora"]
    assert calls == [(i, 10) for i in range(1, 11)]
    firsts = [pixels(column[0]) for column in images.values()]
    assert all((firsts[0] != other).any() for other in firsts[1:])
    alone = pipelines.generate(bundle, model, PROMPT, seeds=(2,), device=CPU, num_inference_steps=2)
    assert (pixels(alone["klora"][0]) == pixels(images["klora"][1])).all()


def test_the_half_that_is_asked_for(model: Path, bundle: Bundle) -> None:
    one = replace(bundle, manifest=replace(bundle.manifest, half="conditional"))
    told: list[Report] = []

    def paint(of: Bundle, half: Half | None, guidance_scale: float = 5.0) -> np.ndarray:
        (image,) = pipelines.generate(
            of, model, PROMPT, device=CPU, half=half, told=told.append, num_inference_steps=2,
            guidance_scale=guidance_scale,
        )["klora"]  # fmt: skip
        return pixels(image)

    both, conditional = paint(bundle, None), paint(bundle, "conditional")
    assert (both != conditional).any()
    assert (paint(one, None) == conditional).all()
    assert (paint(one, "both") == both).all()
    assert [x["half"] for x in told] == ["both", "conditional", "conditional", "both"]
    with pytest.warns(UserWarning, match="ran without classifier-free guidance"):
        paint(one, None, guidance_scale=1.0)


def test_variants_are_what_their_labels_say(bundle: Bundle) -> None:
    """The weights of each variant, dense, against the factors in the file."""
    pipe, _ = tiny.sd15()
    found = variants(bundle)
    layer = next(layer for layer in bundle.manifest.layers if all(layer.ranks))
    module = tiny.layers(pipe)[str(layer)]
    before = module.weight.detach().clone()
    parts = [
        up.flatten(1) @ down.flatten(1) for down, up in (bundle.factors(layer, i) for i in (0, 1))
    ]
    wanted = {"content only": parts[0], "style only": parts[1], "direct merge": parts[0] + parts[1]}
    for label, delta in wanted.items():
        variant = found[label]
        assert variant is not None
        pipe.scheduler.set_timesteps(4)
        with variant.attach(pipe, mode="fused"):
            pipe.unet(torch.zeros(1, 4, 8, 8), pipe.scheduler.timesteps[0], torch.zeros(1, 5, 24))
            torch.testing.assert_close(module.weight.detach() - before, delta, atol=1e-5, rtol=1e-4)
    assert torch.equal(module.weight, before)


def test_bases_that_cannot_be_loaded(bundle: Bundle, model: Path, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "model_index.json").write_text((model / "model_index.json").read_text())
    for base, message in (
        (tmp_path, "no model_index.json"),
        (tmp_path / "nowhere", "no such folder"),
        (bundle.path, "is a file"),
        (tmp_path / "hollow", "lacks the folder of its part scheduler, text_encoder, "),
        ("not an id", "no such folder"),
    ):
        with pytest.raises(BaseModelError, match=message):
            pipelines.load(base, device=CPU)


def test_a_bundle_for_another_model(bundle: Bundle, tmp_path: Path) -> None:
    shapes = {
        "transformer.transformer_blocks.0.attn.to_q": (16, 16),
        "transformer.single_transformer_blocks.0.attn.to_q": (16, 16),
    }
    paths = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for seed, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed, keep=1.0)
    lorabake.make(*paths, tmp_path / "bundle.safetensors")
    other = lorabake.load(tmp_path / "bundle.safetensors")
    with pytest.raises(AttachError):
        other.attach(tiny.sd15()[0])


def test_an_option_that_the_pipeline_lacks(model: Path, bundle: Bundle) -> None:
    with pytest.raises(BaseModelError, match="does not take true_cfg_scale"):
        pipelines.generate(bundle, model, PROMPT, device=CPU, true_cfg_scale=2.0)


def test_more_steps_than_the_scheduler_has(model: Path, bundle: Bundle) -> None:
    with pytest.raises(OverrideError, match="1001 is more than the scheduler's num_train_timestep"):
        pipelines.generate(bundle, model, PROMPT, device=CPU, num_inference_steps=1001)


def test_strengths_are_checked_before_the_model_is_loaded(bundle: Bundle) -> None:
    for bad in (1e308, float("nan")):
        with pytest.raises(OverrideError, match=r"style_strength: .* is out of range"):
            pipelines.generate(bundle, "no model", PROMPT, device=CPU, strengths=(1.0, bad))


def test_sheets() -> None:
    red, blue = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (16, 8), "blue")
    page = pipelines.sheet({"one": [red, blue], "two": [blue, red]})
    assert page.getpixel((20, page.height - 20)) == (0, 0, 255)
    assert page.getpixel((page.width - 20, page.height - 20)) == (255, 0, 0)
    assert pipelines.grid([red]) is red
    square = pipelines.grid([red, blue, blue])
    assert square.getpixel((0, 0)) == (255, 0, 0)
    assert square.getpixel((0, square.height - 1)) == (0, 0, 255)
    assert square.getpixel((square.width - 1, square.height - 1)) == (255, 255, 255)
