"""A folder of images → what a pipeline's denoiser would have painted them as."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import BaseModelError, ImageError, listed, shortened
from ..place import expanded, kind
from .blame import blame

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
"""Of the files that count as images, in lower case."""


def read(folder: str | Path, size: int) -> Tensor:
    """All images of a folder, made square as diffusers' DreamBooth training does.

    Each is turned as its EXIF says, put on white where it is transparent, resized (bilinear)
    until its shorter side is `size`, and cut to the square in its middle.

    Args:
        folder: Holds the images; hidden files, other files and sub-folders are left alone.
        size: Width and height in pixels.

    Returns:
        Float32 `[n, 3, size, size]` in [-1, 1], by the files' names in code point order.

    Raises:
        ImageError: There is no such folder, it has no images, or some cannot be read or would be
            enlarged more than twofold.
    """
    paths = _paths(folder)
    images: list[Tensor] = []
    wrong: list[str] = []
    for path in paths:
        try:
            images.append(_square(_load(path), size))
        except _UnusableError as error:
            wrong.append(f"{shortened(path.name, 60)} ({error})")
    if wrong:
        raise ImageError(
            f"{len(wrong)} of its {len(paths)} images cannot be used: {listed(wrong)}",
            where=str(folder),
            advice=f"Replace or remove them; the shorter side needs {-(-size // 2)} pixels or more",
        )
    return torch.stack(images)


def encode(pipe: Any, images: Tensor, seed: int) -> Tensor:  # noqa: ANN401 - any diffusers pipeline
    """Latents of images, as the pipeline's denoiser leaves them (`output_type="latent"`).

    The inverse of what the pipeline's call does between its last step and `vae.decode`.

    Args:
        pipe: Of Stable Diffusion 1.x, SDXL, Stable Diffusion 3 or FLUX.
        images: `[n, 3, height, width]` in [-1, 1].
        seed: Of the draws from the VAE's posterior, made on the CPU, image by image.

    Returns:
        Float32 `[n, channels, height / f, width / f]`, where f is the VAE's reduction, or
        `[n, tokens, 4 · channels]` for FLUX, on the CPU.

    Raises:
        ImageError: The model does not paint images of this size.
        BaseModelError: The VAE is missing or damaged, or its dtype overflows.
    """
    where = str(getattr(pipe, "name_or_path", None) or "")
    with blame(
        f"the VAE of {type(pipe).__name__} cannot encode images",
        where=where,
        advice="Use a model with the VAE that its pipeline was made for",
    ):
        _check_size(pipe, images)
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad(), _precise(pipe.vae) as vae:
            latents = torch.cat([_sample(vae, image[None], generator) for image in images])
        latents = _normalised(pipe, latents)
        if not latents.isfinite().all():
            raise BaseModelError(
                f"its VAE gives NaN or Inf in {pipe.vae.dtype}",
                where=where,
                advice="Load the model in bfloat16 or float32",
            )
        if hasattr(pipe, "_pack_latents"):
            return pipe._pack_latents(latents, *latents.shape)
        return latents


class _UnusableError(Exception):
    """Why an image is refused."""


def _paths(folder: str | Path) -> list[Path]:
    advice = f"Name a folder with images ({', '.join(SUFFIXES)})"
    if (found := kind(folder)) != "folder":
        what = "is not a folder" if found else "no such folder"
        raise ImageError(what, where=str(folder), advice=advice)
    try:
        inside = sorted(expanded(folder).iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror})", where=str(folder)) from error
    paths = [
        path
        for path in inside
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and kind(path) != "folder"
    ]
    if not paths:
        raise ImageError("has no images", where=str(folder), advice=advice)
    return paths


def _load(path: Path) -> Image.Image:
    """An upright RGB image. Pillow raises a dozen types for a damaged one."""
    if kind(path) != "file":
        raise _UnusableError("unreadable: not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _UnusableError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise _UnusableError("unreadable: not an image that Pillow knows") from error
    except Exception as error:
        raise _UnusableError(f"unreadable: {shortened(str(error), 60).rstrip('.')}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Grey of 16 bits, of which Pillow's own conversion leaves nothing but white.
        high = np.asarray(image).clip(0, 65535) >> 8
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> Tensor:
    width, height = image.size
    short = min(width, height)
    if 2 * short < size:
        raise _UnusableError(f"too small: {width} × {height}")
    width, height = width * size // short, height * size // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    # Python's round, to the even number, is where DreamBooth's crop begins.
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image, np.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1).contiguous()


def _check_size(pipe: Any, images: Tensor) -> None:  # noqa: ANN401 - as above
    packed = 2 if hasattr(pipe, "_pack_latents") else getattr(pipe, "patch_size", 1)
    step = pipe.vae_scale_factor * packed
    height, width = images.shape[-2:]
    if height % step or width % step:
        raise ImageError(
            f"{type(pipe).__name__} does not paint images of {width} × {height} pixels",
            advice=f"Give multiples of {step}",
        )


@contextlib.contextmanager
def _precise(vae: Any) -> Generator[Any]:  # noqa: ANN401 - any VAE
    """The VAE in float32 where its makers say that half precision overflows."""
    before = vae.dtype
    if not getattr(vae.config, "force_upcast", False) or before.itemsize >= 4:
        yield vae
        return
    try:
        yield vae.to(torch.float32)
    finally:
        vae.to(before)


def _sample(vae: Any, image: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ANN401
    found = vae.encode(image.to(vae.device, vae.dtype))
    # The tiny autoencoders know no distribution.
    drawn = found.latents if hasattr(found, "latents") else found.latent_dist.sample(generator)
    return drawn.float().cpu()


def _normalised(pipe: Any, z: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """SDXL undoes a mean and a deviation, flow models a shift, Stable Diffusion 1.x neither."""
    config = pipe.vae.config

    def channels(values: list[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)

    if getattr(pipe, "transformer", None) is not None:
        z = z - (getattr(config, "shift_factor", None) or 0)
    elif hasattr(pipe, "text_encoder_2"):
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            z = (z - channels(mean)) / channels(std)
    return z * config.scaling_factor
