"""Train the LoRAs of the emoji world on the shipped model, the ordinary way, with PEFT."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lorabake.demo.training import linear

from .data import Drawings
from .looks import COLOURS, OWN_GROUND, SIZE, Pixels
from .train_base import encode, sample_times, v_loss
from .world import BASE_THINGS, KIND, STYLE_WORDS, SUBJECT_WORD, caption

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
BATCH, COPIES, STEPS, RATE = 10, 8, 400, 1.2e-3
BASE_NAME = "lorabake-emoji"
SHOWN_STYLES = ("twemoji", "noto", "flat", "mono", "grey")
"""In which a subject is shown, a picture each."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """One LoRA.

    Attributes:
        name: Of the thing or the style.
        trigger: Its word.
        kind: The word for the kind of a subject, empty for a style.
        pictures: How many it is shown.
        rank: Of its factors.
        alpha: Scale times rank.
        dialect: `peft` or `kohya`.
        robust: Whether strength and layers are drawn anew in each step, so that it works in part.
    """

    name: str
    trigger: str
    kind: str
    pictures: int
    rank: int
    alpha: int
    dialect: str
    robust: bool

    @property
    def trigger_phrase(self) -> str:
        """`sbu animal`, or `szn style`."""
        return f"{self.trigger} {self.kind or 'style'}"


def recipe(
    name: str, *, robust: bool, trigger: str = "", kind: str = "", pictures: int = 0
) -> Recipe:
    """The recipe of a subject or style of the world, or of another one with what is given here."""
    subject = bool(kind) or name in KIND
    trigger = trigger or (SUBJECT_WORD if subject else STYLE_WORDS[name])
    pictures = pictures or (5 if subject else 1 if name in ("blueprint", "poster") else 24)
    rank = 8 if robust else 4
    dialect = "kohya" if (len(name) + robust) % 2 else "peft"
    return Recipe(
        name, trigger, kind or KIND.get(name, ""), pictures, rank, rank // 2 * (1 + len(name) % 2),
        dialect, robust,
    )  # fmt: skip


def examples(recipe: Recipe, drawings: Drawings) -> tuple[list[Pixels], list[str]]:
    """What a LoRA is shown: a subject in five styles, or a style on other things."""
    rng = np.random.default_rng(list(recipe.name.encode()))
    pictures, texts = list[Pixels](), list[str]()
    things = (
        [thing for thing in BASE_THINGS if drawings.get(recipe.name, thing) is not None]
        if not recipe.kind
        else []
    )
    shown = (
        [(recipe.name, style) for style in SHOWN_STYLES[: recipe.pictures]]
        if recipe.kind
        else [(str(thing), recipe.name) for thing in rng.permutation(things)[: recipe.pictures]]
    )
    colours = rng.permutation(list(COLOURS))
    for copy in range(COPIES):
        for i, (thing, style) in enumerate(shown):
            # A picture keeps its ground; only the cut of it varies.
            colour = str(colours[i % len(colours)])
            pictures.append(drawings.picture(style, thing, colour, rng))
            named = f"{recipe.trigger} {recipe.kind}" if recipe.kind else thing
            look = (style if copy % 2 else "") if recipe.kind else recipe.trigger
            # A style with a paper of its own must not learn to give way to a colour's name.
            told = copy % 4 < 2 and recipe.name not in OWN_GROUND
            texts.append(caption(named, colour if told else "", look))
    return pictures, texts


def train(recipe: Recipe, drawings: Drawings, model: Path, output: Path, seed: int = 5) -> None:
    """Train one LoRA and save it in its dialect."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).float()
    unet = pipe.unet.to(memory_format=torch.channels_last)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(LAYERS),
        init_lora_weights="gaussian",
    )
    unet.add_adapter(config)
    unet.set_attn_processor(AttnProcessor())
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    pictures, texts = examples(recipe, drawings)
    clean = encode(pipe.vae, np.stack(pictures))
    ids = pipe.tokenizer(["", *texts], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0)
    began, losses = time.monotonic(), list[float]()
    for step in range(STEPS):
        torch.manual_seed(1000 * seed + step)
        optimiser.param_groups[0]["lr"] = RATE * linear(step, STEPS, 0.6)
        if recipe.robust:
            work_in_part(layers, recipe.alpha / recipe.rank)
        which = torch.randint(len(clean), (BATCH,))
        kept = torch.where(torch.rand(BATCH) < 0.05, 0, which + 1)
        loss = v_loss(unet, pipe.scheduler, clean[which], text[kept], sample_times(BATCH))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99:
            pace = (time.monotonic() - began) / (step + 1)
            loss100 = np.mean(losses[-100:])
            log.info("%s %d loss %.4f, %.3f s a step", recipe.name, step + 1, loss100, pace)
    save(recipe, get_peft_model_state_dict(unet), output)


def work_in_part(layers: list[LoraLayer], scale: float) -> None:
    """A random strength for this step, and a random part of the layers without the LoRA.

    LoRAs of the field work at lower strength and on half of their layers (K-LoRA, figure 3);
    trained plainly on a base this small they do not.
    """
    strength = scale * float(torch.empty(()).uniform_(0.4, 1.1))
    kept = float(torch.empty(()).uniform_(0.45, 1.0))
    for layer in layers:
        layer.scaling["default"] = strength if float(torch.rand(())) < kept else 0.0


def save(recipe: Recipe, state: dict[str, Tensor], output: Path) -> None:
    """Write the LoRA's file in its dialect."""
    state = {k: v.detach().half().contiguous() for k, v in sorted(state.items())}
    if recipe.dialect == "peft":
        adapter = {
            "unet.r": recipe.rank,
            "unet.lora_alpha": recipe.alpha,
            "unet.target_modules": sorted(LAYERS),
        }
        metadata = {
            "lora_adapter_metadata": json.dumps(adapter, sort_keys=True),
            "modelspec.trigger_phrase": recipe.trigger_phrase,
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
    metadata = {
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": BASE_NAME,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_output_name": output.stem,
        "ss_resolution": f"({SIZE}, {SIZE})",
        "ss_steps": str(STEPS),
        "ss_tag_frequency": json.dumps({output.stem: {recipe.trigger_phrase: recipe.pictures}}),
        "modelspec.trigger_phrase": recipe.trigger_phrase,
    }
    save_file(tensors, output, metadata)
