from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lorabake.errors import BaseModelError, ImageError
from lorabake.pipelines.pictures import each, read
from lorabake.pipelines.references import encode

from ..runtime import pipes

Pixels = NDArray[Any]
RNG = np.random.default_rng(0)


def noise(height: int, width: int, *channels: int) -> Pixels:
    return RNG.integers(0, 256, (height, width, *(channels or (3,))), dtype=np.uint8)


def save(folder: Path, name: str, pixels: Pixels, **options: Any) -> Path:
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def scaled(values: Pixels, size: int) -> Tensor:
    """Uncropped [height, width, 3] of 0 … 255 → [3, size, size] of its middle in [-1, 1]."""
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    square = values[top : top + size, left : left + size]
    return torch.tensor(square.astype(np.float64) / 255 * 2 - 1).permute(2, 0, 1).float()


def triangle(length: int, wanted: int) -> Pixels:
    """[wanted, length]: each row weighs the source pixels under a triangle, linear resampling."""
    factor = length / wanted
    reach = max(factor, 1.0)
    centres = (np.arange(wanted)[:, None] + 0.5) * factor
    weights = np.maximum(0, 1 - np.abs(np.arange(length)[None] + 0.5 - centres) / reach)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(16, 23), (30, 16), (16, 16)])
def test_the_middle_of_an_image_of_the_right_height_is_its_own_pixels(
    tmp_path: Path, height: int, width: int
) -> None:
    pixels = noise(height, width)
    save(tmp_path, "a.png", pixels)
    found = read(tmp_path, 16)
    assert found.dtype == torch.float32
    assert found.shape == (1, 3, 16, 16)
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    expected = pixels[top : top + 16, left : left + 16].astype(np.float64) / 127.5 - 1
    torch.testing.assert_close(found[0].permute(1, 2, 0).double(), torch.tensor(expected))


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (12, 20)])
def test_scaling_is_linear_and_keeps_the_proportions(
    tmp_path: Path, height: int, width: int
) -> None:
    """Shrunk and enlarged, both orientations, against weights written out by hand."""
    pixels = noise(height, width)
    save(tmp_path, "a.png", pixels)
    short = min(height, width)
    down, across = (triangle(n, n * 20 // short) for n in (height, width))
    expected = np.einsum("ih,hwc,jw->ijc", down, pixels.astype(np.float64), across)
    # Pillow rounds to whole grey values after each direction.
    torch.testing.assert_close(read(tmp_path, 20)[0], scaled(expected, 20), atol=2.1 / 255, rtol=0)


def test_order_suffixes_and_what_is_left_alone(tmp_path: Path) -> None:
    names = ["b.PNG", "a.webp", "c.bmp", "B.jpg", "d.jpeg"]
    greys = dict(zip(names, (10, 60, 110, 160, 210), strict=True))
    for name, grey in greys.items():
        save(tmp_path, name, np.full((8, 8, 3), grey, np.uint8))
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / ".hidden.png").write_text("not an image")
    (tmp_path / "more.png").mkdir()
    means = (read(str(tmp_path), 8).mean((1, 2, 3)) + 1) * 127.5
    expected = torch.tensor([float(greys[name]) for name in sorted(names)])
    torch.testing.assert_close(means, expected, atol=2.0, rtol=0)
    assert torch.equal(read(tmp_path, 8), read(tmp_path, 8))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """6: the camera was held so that the picture has to be turned clockwise."""
    pixels = noise(12, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path, "a.png", pixels, exif=exif)
    torch.testing.assert_close(read(tmp_path, 12)[0], scaled(np.rot90(pixels, -1), 12))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = noise(9, 9, 4)
    save(tmp_path, "a.png", pixels)
    palette = Image.fromarray(np.zeros((9, 9), np.uint8), "P")
    palette.putpalette([7, 7, 7])
    palette.save(tmp_path / "b.png", transparency=0)
    alpha = pixels[..., 3:] / 255
    found = read(tmp_path, 9)
    on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
    torch.testing.assert_close(found[0], scaled(on_white, 9), atol=2.1 / 255, rtol=0)
    assert (found[1] == 1).all()


def test_grey_of_8_and_of_16_bits_look_alike(tmp_path: Path) -> None:
    grey = noise(9, 9, 1)[..., 0]
    save(tmp_path, "a.png", grey)
    save(tmp_path, "b.png", grey.astype(np.uint16) * 257)
    found = read(tmp_path, 9)
    torch.testing.assert_close(found[0], scaled(np.stack([grey] * 3, -1), 9))
    assert torch.equal(found[0], found[1])


def test_one_image_is_a_folder_of_one(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", noise(12, 20))
    assert torch.equal(read(path, 8), read(tmp_path, 8))


def test_each_image_as_it_is(tmp_path: Path) -> None:
    """Every grey value, in the image's own size; transparent pixels are white."""
    pixels = [noise(5, 7), noise(6, 4, 4)]
    pixels[1][..., 3] = 0
    for name, values in zip("ab", pixels, strict=True):
        save(tmp_path, f"{name}.png", values)
    seen: list[Tensor] = []
    assert each(tmp_path, lambda image: (seen.append(image), len(seen))[1]) == [1, 2]
    torch.testing.assert_close(seen[0].permute(1, 2, 0) * 255, torch.tensor(pixels[0]).float())
    assert torch.equal(seen[1], torch.ones(3, 6, 4))
    each(str(tmp_path / "b.png"), seen.append)
    assert torch.equal(seen[2], seen[1])


def nowhere(folder: Path) -> Path:
    return folder / "none"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def text(folder: Path) -> Path:
    (folder / "a.txt").write_text("a cat")
    return folder / "a.txt"


def empty(folder: Path) -> Path:
    (folder / "notes.txt").write_text("a cat")
    return folder


def no_image(folder: Path) -> Path:
    (folder / "a.png").write_text("a cat")
    return folder


def truncated(folder: Path) -> Path:
    path = save(folder, "a.png", noise(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    return folder


def dangling(folder: Path) -> Path:
    (folder / "a.png").symlink_to(folder / "gone")
    return folder


def small(folder: Path) -> Path:
    save(folder, "a.png", noise(15, 99))
    return folder


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (nowhere, "no such folder or image. Name a folder"),
        (a_pipe, "is neither a folder nor a file. Name a folder"),
        (text, r"cannot be used: a.txt \(unreadable: not an image.*\). Replace or remove it"),
        (empty, "has no images. Name a folder"),
        (no_image, r"1 of its 1 images cannot be used: a.png \(unreadable: not an image"),
        (truncated, r"a.png \(unreadable: .*truncated"),
        (dangling, r"a.png \(unreadable: not a file\)"),
        (small, r"a.png \(too small: 99 × 15\). .* shorter side needs 16 pixels"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_say_what_where_and_what_to_do(
    tmp_path: Path, prepare: Callable[[Path], Path], says: str
) -> None:
    folder = prepare(tmp_path)
    with pytest.raises(ImageError, match=says) as caught:
        read(folder, 32)
    assert caught.value.where == str(folder)


def test_a_folder_with_an_impossible_name() -> None:
    with pytest.raises(ImageError, match="no such folder"):
        read("a\0b", 8)


@pytest.mark.parametrize("limit", [50, 80], ids=["error", "warning"])
def test_images_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    save(tmp_path, "a.png", noise(10, 12))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=rf"a.png \(more than {limit} pixels\)"):
        read(tmp_path, 8)


def test_every_wrong_image_is_named(tmp_path: Path) -> None:
    small(tmp_path)
    save(tmp_path, "b.png", noise(16, 16))
    (tmp_path / "c.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"2 of its 3 .*a.png \(too small.*c.jpg \(unreadable"):
        read(tmp_path, 32)


def test_half_the_size_is_enough(tmp_path: Path) -> None:
    save(tmp_path, "a.png", noise(16, 40))
    assert read(tmp_path, 32).shape == (1, 3, 32, 32)


def vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    """Four pixels to a latent."""
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "block_out_channels": (4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": channels,
        "norm_num_groups": 2,
        "sample_size": 32,
    }
    return AutoencoderKL(**(config | more)).eval()


def sd15(**more: Any) -> Any:
    return pipes.sd(vae=vae(scaling_factor=0.2, **more))


def sdxl(**more: Any) -> Any:
    parts: dict[str, Any] = dict(pipes.sdxl().components)
    parts |= {"vae": vae(scaling_factor=0.13, **more), "scheduler": pipes.SCHEDULERS["ddim"]()}
    return pipes.quiet(StableDiffusionXLPipeline(**parts, add_watermarker=False))


def sdxl_normalised() -> Any:
    return sdxl(latents_mean=[0.1, -2.0, 0.3, 0.0], latents_std=[1.0, 0.5, 3.0, 2.0])


def sd3() -> Any:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
        pooled_projection_dim=10, pos_embed_max_size=8,
    )  # fmt: skip
    nothing: dict[str, Any] = pipes.NOTHING | {"text_encoder_3": None, "tokenizer_3": None}
    nothing["vae"] = vae(scaling_factor=1.5, shift_factor=0.06)
    scheduler = FlowMatchEulerDiscreteScheduler()
    parts: dict[str, Any] = {"transformer": transformer, "scheduler": scheduler}
    return pipes.quiet(StableDiffusion3Pipeline(**(nothing | parts)))


def flux() -> Any:
    """One channel, packed by four."""
    parts: dict[str, Any] = dict(pipes.flux().components)
    parts["vae"] = vae(1, scaling_factor=0.36, shift_factor=0.12)
    return pipes.quiet(FluxPipeline(**parts))


MAKERS = [sd15, sdxl, sdxl_normalised, sd3, flux]


def images(count: int = 2) -> Tensor:
    return pipes.draw(count, 3, 32, 32, seed=5).clamp(-1, 1)


def painted(pipe: Any, output_type: str) -> Tensor:
    """What the pipeline's own call returns for random embeddings; no step changes the latents."""
    inputs: dict[str, Any] = {"prompt_embeds": pipes.draw(2, 5, 12, seed=1)}
    kind = type(pipe)
    if kind is not StableDiffusionPipeline:
        inputs["pooled_prompt_embeds"] = pipes.draw(2, 10, seed=3)
    if kind is not FluxPipeline:
        inputs["guidance_scale"] = 1.0
    return pipe(
        **inputs, height=32, width=32, num_inference_steps=1, output_type=output_type
    ).images


def posterior(pipe: Any, given: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return torch.cat([pipe.vae.encode(x).latent_dist.sample(generator) for x in given.split(1)])


def decoded_by(pipe: Any, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What reaches `vae.decode` when the pipeline's own call ends with these latents."""
    seen: list[Tensor] = []
    decode = pipe.vae.decode

    def spy(z: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(z)
        return decode(z, *args, **options)

    def step(*_: Any, **__: Any) -> tuple[Tensor]:
        return (latents,)

    monkeypatch.setattr(pipe.vae, "decode", spy)
    monkeypatch.setattr(pipe.scheduler, "step", step)
    painted(pipe, "pt")
    return seen[0]


@pytest.mark.parametrize("make", MAKERS)
def test_the_pipelines_own_call_undoes_the_encoding(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked, unscaled and unshifted by diffusers itself, it is the posterior's raw sample."""
    pipe = make()
    found = encode(pipe, images(), seed=7)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    raw = decoded_by(pipe, found, monkeypatch)
    torch.testing.assert_close(raw, posterior(pipe, images(), 7))
    assert raw.std() > 0.1


@pytest.mark.parametrize("make", MAKERS)
def test_shapes_are_those_of_sampling(make: Callable[[], Any]) -> None:
    pipe = make()
    assert encode(pipe, images(), seed=7).shape == painted(pipe, "latent").shape


def test_a_seed_means_the_same_draws() -> None:
    pipe = sd15()
    once, again, other = (encode(pipe, images(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(encode(pipe, images(1), seed=1), once[:1])


@pytest.mark.parametrize(("upcast", "inside"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_vae_is_upcast_where_it_says_so_and_comes_back(
    upcast: bool, inside: torch.dtype
) -> None:
    pipe = sdxl(force_upcast=upcast)
    pipe.vae.to(torch.bfloat16)
    before = {name: value.clone() for name, value in pipe.vae.state_dict().items()}
    seen: list[torch.dtype] = []
    pipe.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    found = encode(pipe, images(), seed=7)
    assert found.dtype == torch.float32
    assert seen == [inside] * 2
    after = pipe.vae.state_dict()
    assert all(
        value.dtype == torch.bfloat16 and torch.equal(value, before[name])
        for name, value in after.items()
    )


def test_the_vae_comes_back_after_an_error() -> None:
    pipe = sdxl(force_upcast=True)
    pipe.vae.to(torch.bfloat16)
    pipe.vae.encoder.conv_in = torch.nn.Conv2d(5, 4, 3).bfloat16()
    with pytest.raises(BaseModelError, match=r"VAE of StableDiffusionXLPipeline cannot encode"):
        encode(pipe, images(), seed=7)
    assert pipe.vae.dtype == torch.bfloat16


def test_a_tiny_autoencoder_draws_nothing() -> None:
    torch.manual_seed(2)
    tiny: Any = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
        scaling_factor=2.0,
    ).eval()  # fmt: skip
    pipe = sd15()
    pipe.register_modules(vae=tiny)
    with torch.no_grad():
        expected = 2.0 * tiny.encode(images()).latents
    torch.testing.assert_close(encode(pipe, images(), seed=7), expected)


def test_a_model_without_vae_or_with_a_broken_one() -> None:
    with pytest.raises(BaseModelError, match=r"VAE of FluxPipeline cannot encode images \("):
        encode(pipes.flux(), images(), seed=7)
    pipe = sd15()
    pipe.vae.encoder.conv_out.bias.data.fill_(torch.inf)
    with pytest.raises(BaseModelError, match=r"NaN or Inf in torch.float32. Load the model in"):
        encode(pipe, images(), seed=7)


@pytest.mark.parametrize(("make", "step"), [(sd15, 4), (sd3, 8), (flux, 8)])
def test_sizes_that_the_pipeline_does_not_paint(make: Callable[[], Any], step: int) -> None:
    size = 32 - step // 2
    with pytest.raises(ImageError, match=rf"{size} × 32 pixels. Give multiples of {step}"):
        encode(make(), torch.zeros(1, 3, 32, size), seed=7)
