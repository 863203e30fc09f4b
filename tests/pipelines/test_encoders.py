"""Image encoders against transformers' models on images that were prepared by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SwinConfig, SwinModel

from lorabake.errors import BaseModelError
from lorabake.pipelines.encoders import Encoder, load, recorded
from lorabake.pipelines.encoders import encoders as encoders_of
from lorabake.runtime.guidance import Guidance, Reference

from .. import bases, encoders

CPU = torch.device("cpu")
ROLES = ("clip", "dino")
MODELS = {"clip": encoders.clip, "dino": encoders.dino}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for role in ROLES:
        encoders.save(role, folder / role)
    return folder


def images(*shape: int, count: int = 2) -> Tensor:
    dice = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, *shape, generator=dice, dtype=torch.float64)


def cubic(length: int, wanted: int) -> NDArray[np.float64]:
    """[wanted, length]: weights of bicubic resampling (a = -0.5), widened where it shrinks."""
    factor = length / wanted
    centres = (np.arange(wanted)[:, None] + 0.5) * factor
    x = np.abs(np.arange(length)[None] + 0.5 - centres) / max(factor, 1.0)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def prepared(pictures: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Shorter side to 16 pixels, middle square, normalised."""
    height, width = pictures.shape[-2:]
    short = min(height, width)
    down, across = (cubic(n, n * 16 // short) for n in (height, width))
    x = np.einsum("ih,nchw,jw->ncij", down, pictures.numpy(), across)
    top, left = (x.shape[2] - 16) // 2, (x.shape[3] - 16) // 2
    x = x[:, :, top : top + 16, left : left + 16]
    shaped = [np.array(values).reshape(3, 1, 1) for values in (mean, std)]
    return torch.tensor((x - shaped[0]) / shaped[1])


def embedded(role: str, x: Tensor) -> Tensor:
    model = MODELS[role]().double()
    with torch.no_grad():
        found = model(pixel_values=x)
    return found.image_embeds if role == "clip" else found.last_hidden_state[:, 0]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("shape", [(16, 16), (16, 25), (50, 36), (11, 13)])
def test_the_plain_model_on_prepared_images(
    role: str, shape: tuple[int, int], folder: Path
) -> None:
    wanted = embedded(role, prepared(images(*shape), *encoders.STATISTICS[role]))
    assert (wanted[0] - wanted[1]).abs().max() > 0.01
    encoder = load(folder / role, device=CPU, dtype=torch.float64)
    torch.testing.assert_close(encoder(images(*shape)), wanted, atol=1e-9, rtol=1e-9)
    single = load(str(folder / role), device=CPU)
    found = single(images(*shape).half())  # any float dtype comes in, the model's goes out
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=0.02, rtol=0.02)
    found = load(folder / role, device=CPU, dtype=torch.bfloat16)(images(*shape))
    assert found.dtype == torch.bfloat16
    assert float(torch.cosine_similarity(found.double(), wanted).min()) > 0.99


def test_a_clip_model_with_its_text_tower(tmp_path: Path) -> None:
    """As CLIP lies on the hub; its own statistics are the default of a folder without any."""
    model = encoders.whole_clip()
    model.save_pretrained(tmp_path)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    x = prepared(images(20, 16), mean, std)
    with torch.no_grad():
        tower = model.double().vision_model(pixel_values=x)
        wanted = model.visual_projection(tower.pooler_output)
    found = load(tmp_path, device=CPU, dtype=torch.float64)(images(20, 16))
    assert found.shape == (2, 10)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_statistics_of_a_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dino", tmp_path / "dino")
    told = tmp_path / "dino" / "preprocessor_config.json"
    for text, mean, std in (
        ('{"do_normalize": false, "image_mean": [9, 9, 9]}', [0.0] * 3, [1.0] * 3),
        (None, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):
        told.unlink() if text is None else told.write_text(text)
        found = load(tmp_path / "dino", device=CPU, dtype=torch.float64)(images(16, 16))
        wanted = embedded("dino", prepared(images(16, 16), mean, std))
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("role", ROLES)
def test_gradients_flow_to_the_images_alone(role: str, folder: Path) -> None:
    encoder = load(folder / role, device=CPU, dtype=torch.float64)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    x, way = images(21, 26, count=1).requires_grad_(), images(21, 26, count=1) - 0.5
    encoder(x).square().sum().backward()
    assert x.grad is not None
    step = 1e-5
    with torch.no_grad():
        ends = [encoder(x + sign * step * way).square().sum() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close((x.grad * way).sum(), slope, atol=0, rtol=1e-6)


def nowhere(folder: Path) -> Path:
    return folder / "none"


def a_file(folder: Path) -> Path:
    return folder / "clip" / "config.json"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def broken(folder: Path) -> Path:
    (folder / "dino" / "config.json").write_text("{")
    return folder / "dino"


def weightless(folder: Path) -> Path:
    (folder / "dino" / "model.safetensors").unlink()
    return folder / "dino"


def pickled(folder: Path) -> Path:
    (folder / "dino" / "model.safetensors").rename(folder / "dino" / "pytorch_model.bin")
    return folder / "dino"


def unprojected(folder: Path) -> Path:
    model = encoders.clip()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("visual_projection")}
    model.save_pretrained(folder / "clip", state_dict=state)
    return folder / "clip"


def a_text_encoder(folder: Path) -> Path:
    bases.clip(bases.CLIPTextModel).save_pretrained(folder / "text")
    return folder / "text"


def no_token(folder: Path) -> Path:
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[1],
                        window_size=2)  # fmt: skip
    SwinModel(config).save_pretrained(folder / "swin")
    return folder / "swin"


def foreign_code(folder: Path) -> Path:
    (folder / "dino" / "evil.py").write_text("raise SystemExit")
    config = json.loads((folder / "dino" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (folder / "dino" / "config.json").write_text(json.dumps(config))
    return folder / "dino"


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (nowhere, "no such folder. Name the folder of an image encoder"),
        (a_file, r"is not an image encoder .*\(it is a file\)"),
        (empty, r"is not an image encoder .*\(it has no config.json\)"),
        (broken, r"cannot be loaded as an image encoder \(.*\). Save or download it again"),
        (weightless, "has no weights"),
        (pickled, "as a pickle only, which can run code. Save"),
        (unprojected, "lacks 1 of its weights: visual_projection.weight"),
        (a_text_encoder, "CLIPTextModel is not an image encoder"),
        (no_token, "SwinModel is not an image encoder with one embedding per image"),
        (foreign_code, r"cannot be loaded as an image encoder \("),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_say_what_where_and_what_to_do(
    prepare: Callable[[Path], Path], says: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    where = prepare(tmp_path)
    with pytest.raises(BaseModelError, match=says) as caught:
        load(where, device=CPU)
    assert caught.value.where == str(where)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BaseModelError, match=r"image encoder \(.*Check the name and the connection"
    ):
        load("nobody/no-such-encoder", device=CPU)


def bundle(clip: str, dino: str) -> Any:
    """As much of a bundle as is asked for its encoders."""
    one = Reference((1.0,), (1.0,), None, None)
    manifest = SimpleNamespace(guidance=Guidance((one, one), clip, dino))
    return SimpleNamespace(path=Path("b.safetensors"), manifest=manifest)


def test_a_pair_of_ones_own(folder: Path) -> None:
    found = encoders_of(bundle("a/b", "folder"), folder / "clip", str(folder / "dino"))
    assert [*found] == ["clip", "dino"]
    assert all(isinstance(encoder, Encoder) for encoder in found.values())
    assert found["clip"](images(16, 16)).shape == (2, 12)
    assert found["dino"](images(16, 16)).shape == (2, 16)


def test_a_bundle_names_encoders_on_the_hub_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a path nor a folder that happens to have the id's name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "dino", tmp_path / "some" / "dino")
    for name in ("dino", str(folder / "dino"), "../dino", "~/dino", "a/b/c"):
        with pytest.raises(BaseModelError, match=r"by its folder's name only. Give .* dino="):
            encoders_of(bundle("a/b", name), folder / "clip")
    with pytest.raises(BaseModelError, match=r"but a folder here has that name. .* dino="):
        encoders_of(bundle("a/b", "some/dino"), folder / "clip")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match=r"^nobody/clip: cannot be loaded"):
        encoders_of(bundle("nobody/clip", "dino"), None, folder / "dino")


def test_what_a_bundle_calls_an_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert recorded(folder / "dino") == "dino"
    assert recorded("/home/me/not-there") == "not-there"
    monkeypatch.chdir(folder / "dino")
    assert [recorded(name) for name in (".", "../clip", "~nobody/x")] == ["dino", "clip", "x"]
    monkeypatch.chdir(folder.parent)
    assert recorded(f"{folder.name}/clip") == "clip"
