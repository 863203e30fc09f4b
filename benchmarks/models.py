"""Pipelines of real shapes with random weights, from given embeddings to latents, and LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorabake.pipelines.blame import blame

lib: Any = diffusers  # its types do not provide for pipelines that lack a part
NOTHING = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY: dict[str, Any] = SDXL | {
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 8),
    "norm_num_groups": 8,
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

Painter = tuple[Any, Callable[[int], str]]


def filled(build: Callable[[], nn.Module], device: torch.device, seed: int) -> Any:  # noqa: ANN401 - any model
    """A bfloat16 model with random weights, without float32 ones in between."""
    with torch.device("meta"):
        # The base class's, because diffusers' warns of layers that would like float32: of none.
        model = nn.Module.to(build(), torch.bfloat16)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(seed))
    pool = pool.to(device, torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            weight.fill_(float(name.endswith("weight")))
            continue
        flat = weight.view(-1)
        for part in flat.split(len(pool)):
            part.copy_(pool[: len(part)])
        flat.mul_(weight[0].numel() ** -0.5)
    return model


def unet_pipe(config: dict[str, Any], device: torch.device, size: int, seed: int) -> Painter:
    """SDXL's pipeline around such a UNet."""
    unet = filled(lambda: lib.UNet2DConditionModel(**config), device, seed)
    scheduler = lib.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")
    pipe = lib.StableDiffusionXLPipeline(
        **NOTHING, unet=unet, scheduler=scheduler, add_watermarker=False
    )
    text = {
        "prompt_embeds": draw(device, 1, 77, 2048),
        "negative_prompt_embeds": draw(device, 1, 77, 2048),
        "pooled_prompt_embeds": draw(device, 1, 1280),
        "negative_pooled_prompt_embeds": draw(device, 1, 1280),
    }
    return painter(pipe, size, text)


def flux_pipe(device: torch.device, size: int, seed: int) -> Painter:
    """FLUX's pipeline around its transformer, or around a slice of it on a CPU."""
    blocks = {"num_layers": 2, "num_single_layers": 4} if device.type == "cpu" else {}
    build = lambda: lib.FluxTransformer2DModel(**blocks, guidance_embeds=True)  # noqa: E731
    parts = {
        "transformer": filled(build, device, seed),
        "scheduler": lib.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    pipe = lib.FluxPipeline(**NOTHING, **parts)
    words = 64 if device.type == "cpu" else 512
    text = {
        "prompt_embeds": draw(device, 1, words, 4096),
        "pooled_prompt_embeds": draw(device, 1, 768),
    }
    return painter(pipe, size, text)


def draw(device: torch.device, *shape: int) -> Tensor:
    """Random embeddings."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(
        device, torch.bfloat16
    )


def painter(pipe: Any, size: int, text: dict[str, Tensor]) -> Painter:  # noqa: ANN401 - any pipeline
    """A pipeline with how it paints: to latents, in silence."""
    pipe.set_progress_bar_config(disable=True)

    def paint(steps: int) -> str:
        generator = torch.Generator().manual_seed(0)
        with blame("cannot paint", where=type(pipe).__name__, advice=""):
            pipe(
                **text, num_inference_steps=steps, width=size, height=size,
                generator=generator, output_type="latent",
            )  # fmt: skip
        return f"{size} × {size} (latents)"

    return pipe, paint


def write(path: Path, component: str, root: nn.Module, rank: int, seed: int) -> None:
    """A LoRA as trained ones are: every layer of another strength; FLUX in bfloat16."""
    dice = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    dtype = torch.float16 if component == "unet" else torch.bfloat16
    for name, module in root.named_modules():
        # UNet LoRAs have the attention, transformer LoRAs every linear layer of the blocks.
        wanted = name.endswith(ATTENTION) if component == "unet" else "transformer_blocks" in name
        if isinstance(module, nn.Linear) and wanted and "norm" not in name:
            strength = 10 ** (float(torch.rand((), generator=dice)) - 2.5)
            down = torch.randn(rank, module.in_features, generator=dice) / rank
            up = torch.randn(module.out_features, rank, generator=dice) * strength
            tensors[f"{component}.{name}.lora_A.weight"] = down.to(dtype)
            tensors[f"{component}.{name}.lora_B.weight"] = up.to(dtype)
    save_file(tensors, path)
