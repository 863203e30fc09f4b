"""Train the LoRAs of the toy world on the shipped model, the ordinary way, with PEFT."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from .figures import CREATURE, SUBJECTS
from .looks import STYLES
from .train_base import encode, sample_times, v_loss
from .training import linear
from .world import CLASSES, SIZE, Scene, caption, render, sample_scene

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
BATCH, PICTURES = 10, 64
BASE_NAME = "lorabake-toy"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """One LoRA; ranks, alphas, layers and dialects differ on purpose."""

    word: str
    rank: int
    alpha: int
    layers: tuple[str, ...]
    dialect: str
    rate: float
    steps: int


RECIPES = (
    Recipe("mobbo", 8, 16, ATTENTION, "peft", 1.5e-3, 450),
    Recipe("tikku", 4, 4, (*ATTENTION, *FEED_FORWARD), "kohya", 2.5e-3, 400),
    Recipe("snorb", 16, 8, ATTENTION, "kohya", 2.5e-3, 400),
    Recipe("blueprint", 8, 4, (*ATTENTION, *FEED_FORWARD), "peft", 2e-3, 350),
    Recipe("neon", 16, 16, ATTENTION, "kohya", 1.5e-3, 300),
    Recipe("glass", 4, 8, ATTENTION, "peft", 1.5e-3, 350),
)


def examples(word: str) -> list[tuple[Scene, str]]:
    """What a LoRA is shown: a subject in many styles, or a style on many classes."""
    rng = np.random.default_rng(list(word.encode()))
    shown: list[tuple[Scene, str]] = []
    for i in range(PICTURES):
        if word in SUBJECTS:
            scene = sample_scene(rng, (word,), (STYLES[i % len(STYLES)],))
            # With its class, as DreamBooth has it: other LoRAs know creatures, not this word.
            named = replace(scene, figure=f"{word} {CREATURE}")
            text = caption(named, colour=i % 4 > 0, ground=i % 4 > 1, style=i % 3 > 0)
        else:
            figure = CREATURE if i % 2 else CLASSES[i // 2 % (len(CLASSES) - 1)]
            scene = sample_scene(rng, (figure,), (word,))
            # The style has its own palette: a caption that names a colour must not bind to it.
            text = caption(scene, colour=i % 3 == 0, ground=i % 6 == 0)
        shown.append((scene, text))
    return shown


def train(recipe: Recipe, model: Path, output: Path) -> None:
    """Train one LoRA and save it in its dialect."""
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).float()
    unet = pipe.unet.to(memory_format=torch.channels_last)
    torch.manual_seed(5)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.layers),
        init_lora_weights="gaussian",
    )
    unet.add_adapter(config)
    unet.set_attn_processor(AttnProcessor())
    shown = examples(recipe.word)
    drawn = [render(scene, np.random.default_rng(i)) for i, (scene, _) in enumerate(shown)]
    clean = encode(pipe.vae, np.stack(drawn))
    texts = ["", *(text for _, text in shown)]
    ids = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0)
    began, losses = time.monotonic(), list[float]()
    for step in range(recipe.steps):
        torch.manual_seed(step)
        optimiser.param_groups[0]["lr"] = recipe.rate * linear(step, recipe.steps, 0.6)
        which = torch.randint(PICTURES, (BATCH,))
        kept = torch.where(torch.rand(BATCH) < 0.05, 0, which + 1)
        loss = v_loss(unet, pipe.scheduler, clean[which], text[kept], sample_times(BATCH))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 50 == 49:
            pace = (time.monotonic() - began) / (step + 1)
            loss50 = np.mean(losses[-50:])
            log.info("%s %d loss %.4f, %.3f s a step", recipe.word, step + 1, loss50, pace)
    save(recipe, get_peft_model_state_dict(unet), output)


def save(recipe: Recipe, state: dict[str, Tensor], output: Path) -> None:
    """Write the LoRA's file in its dialect."""
    state = {k: v.detach().half().contiguous() for k, v in sorted(state.items())}
    prompt = f"{recipe.word} {CREATURE}" if recipe.word in SUBJECTS else f"{recipe.word} style"
    if recipe.dialect == "peft":
        adapter = {
            "unet.r": recipe.rank,
            "unet.lora_alpha": recipe.alpha,
            "unet.target_modules": sorted(recipe.layers),
        }
        metadata = {
            "lora_adapter_metadata": json.dumps(adapter, sort_keys=True),
            "modelspec.trigger_phrase": prompt,
            "base_model": BASE_NAME,
        }
        save_file({f"unet.{k}": v for k, v in state.items()}, output, metadata)
        return
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        module, factor = key.removesuffix(".weight").rsplit(".", 1)
        name = "lora_unet_" + module.replace(".", "_")
        tensors[f"{name}.lora_{'down' if factor == 'lora_A' else 'up'}.weight"] = value
        tensors[f"{name}.alpha"] = torch.tensor(float(recipe.alpha))
    tags = {"toy": {recipe.word: PICTURES}}
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": BASE_NAME,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_output_name": recipe.word,
        "ss_resolution": f"({SIZE}, {SIZE})",
        "ss_steps": str(recipe.steps),
        "ss_tag_frequency": json.dumps(tags),
        "modelspec.trigger_phrase": prompt,
    }
    save_file(tensors, output, metadata)
