"""What does guiding the latents cost per step? Time and memory of latent-level refinement.

SDXL's UNet and VAE, a tiny autoencoder, CLIP ViT-B/32 and DINO ViT-S/16 in their real shapes with
random weights; both LoRAs act all the time, so that the guidance is all that differs.

    python benchmarks/guidance.py [--device cuda] [--steps 3] [--repeats 3] [--size 256] [--rank 64]
        [--tiny] [--threads 2]

`--tiny` takes a UNet whose channels are a tenth of SDXL's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from models import SDXL, TINY, filled, lib, unet_pipe, write
from tqdm import tqdm

import lorabake
from lorabake.errors import UserError
from lorabake.pipelines.bench import compare, markdown
from lorabake.pipelines.bench.ways import Way
from lorabake.pipelines.embed import Encoder
from lorabake.runtime import Bundle
from lorabake.runtime.guidance import Guidance, Reference

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
}  # fmt: skip
CLIP: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "patch_size": 32, "projection_dim": 512,
}  # fmt: skip
DINO: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 6, "patch_size": 16,
}  # fmt: skip
PLAIN = ([0.5] * 3, [0.5] * 3)


def encoders(device: torch.device) -> dict[str, Encoder]:
    """The two encoders, in float32 as a bundle's user has them."""
    torch.manual_seed(0)
    clip: Any = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP))
    dino: Any = transformers.ViTModel(transformers.ViTConfig(**DINO), add_pooling_layer=False)
    return {
        "clip": Encoder(clip.to(device), True, 224, PLAIN),
        "dino": Encoder(dino.to(device), False, 224, PLAIN),
    }


def guided(bundle: Bundle) -> Bundle:
    """The bundle with random references."""
    dice = torch.Generator().manual_seed(0)
    content, style = (
        Reference(
            tuple(torch.randn(512, generator=dice).tolist()),
            tuple(torch.randn(384, generator=dice).tolist()),
            None,
            None,
        )
        for _ in range(2)
    )
    found = Guidance((content, style), "random", "random", m=1e-3)
    return replace(bundle, manifest=replace(bundle.manifest, guidance=found))


def run(options: argparse.Namespace) -> None:
    """Build everything, compare, print."""
    device = torch.device(options.device)
    size = options.size or (1024 if device.type == "cuda" else 256)
    pipe, paint = unet_pipe(TINY if options.tiny else SDXL, device, size, 0)
    pipe.register_modules(vae=filled(lambda: lib.AutoencoderKL(**VAE), device, 1))
    small = filled(lib.AutoencoderTiny, device, 2)
    seeing = encoders(device)

    def way(key: str, label: str, through: str | None, decoder: Any = None) -> Way:  # noqa: ANN401 - a VAE
        def on(bundle: Bundle, pipe: Any) -> AbstractContextManager[object]:  # noqa: ANN401 - any pipeline
            if through is None:
                return bundle.attach(pipe, guidance=False)
            return bundle.attach(pipe, encoders=seeing, decoder=decoder, through=through)

        return Way(key, label, on)

    ways = (
        way("none", "no guidance", None),
        way("latents_tiny", "through latents, tiny autoencoder", "latents", small),
        way("latents", "through latents, the VAE", "latents"),
        way("denoiser_tiny", "through the denoiser, tiny autoencoder", "denoiser", small),
        way("denoiser", "through the denoiser, the VAE", "denoiser"),
    )
    with tempfile.TemporaryDirectory() as folder, tqdm(disable=None) as bar:
        files = [Path(folder, f"{name}.safetensors") for name in ("content", "style", "bundle")]
        for i, path in enumerate(files[:2]):
            write(path, "unet", pipe.unet, options.rank, i)
        lorabake.make(*files, method="direct")

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = compare(
            pipe, guided(lorabake.load(files[2])), paint, steps=[options.steps],
            repeats=options.repeats, ways=ways, progress=progress,
        )  # fmt: skip
    print(markdown(result), flush=True)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, help="pixels (default: 256, on a GPU 1024)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        run(options)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
