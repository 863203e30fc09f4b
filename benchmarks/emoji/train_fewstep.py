"""Train the few-step LoRA of the emoji world: four steps without guidance look like twenty-five.

The teacher's whole runs, with guidance, are recorded; the student learns to say where a run ends
from four points on its way (a consistency loss against the end of the teacher's own path, after
arXiv 2303.01469; the LoRA as in arXiv 2311.05556).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional

from lorabake.demo.training import Untyped, linear

from .looks import COLOURS
from .loras import LAYERS, Recipe, save
from .world import BASE_THINGS, STYLES, caption, pick

RUNS, STEPS, BATCH, RATE = 480, 500, 16, 1e-3
TEACHER, STUDENT, GUIDANCE = 24, 4, 3.0
log = logging.getLogger(__name__)


def prompts(count: int) -> list[str]:
    """What the teacher is asked: things of the base world in full, or in part."""
    rng = np.random.default_rng(31)
    return [
        caption(
            pick(BASE_THINGS, rng),
            pick([*COLOURS], rng) if rng.random() < 0.9 else "",
            pick([*STYLES], rng) if rng.random() < 0.8 else "",
        )
        for _ in range(count)
    ]


@torch.no_grad()
def recorded(pipe: Untyped, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The teacher's latents at the student's timesteps, [runs, 4, c, h, w], and at its end."""
    points, ends = list[Tensor](), list[Tensor]()
    wanted = range(0, TEACHER, TEACHER // STUDENT)
    for i in range(0, len(texts), 48):
        part = texts[i : i + 48]
        noise = torch.randn(len(part), 8, 16, 16, generator=torch.Generator().manual_seed(i))
        kept = [noise]

        def keep(
            pipe: object, step: int, t: object, values: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            if step + 1 in wanted:
                kept.append(values["latents"])  # noqa: B023 - read within this round
            return values

        end = pipe(
            part, num_inference_steps=TEACHER, guidance_scale=GUIDANCE, latents=noise,
            output_type="latent", callback_on_step_end=keep,
        ).images  # fmt: skip
        points.append(torch.stack(kept, 1))
        ends.append(end)
        log.info("teacher %d of %d", i + len(part), len(texts))
    return torch.cat(points), torch.cat(ends)


def train(model: Path, output: Path, steps: int = STEPS) -> None:
    """Record, train and save."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).float()
    unet = pipe.unet.to(memory_format=torch.channels_last)
    texts = prompts(RUNS)
    points, ends = recorded(pipe, texts)
    pipe.scheduler.set_timesteps(STUDENT)
    times: Tensor = pipe.scheduler.timesteps
    alphas: Tensor = pipe.scheduler.alphas_cumprod[times]
    ids = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
    recipe = Recipe("fewstep", "", "", RUNS, 6, 6, "kohya", robust=False)
    torch.manual_seed(8)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(LAYERS))
    unet.add_adapter(config)
    unet.set_attn_processor(AttnProcessor())
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0)
    began, losses = time.monotonic(), list[float]()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * linear(step, steps, 0.5)
        which, point = torch.randint(RUNS, (BATCH,)), torch.randint(STUDENT, (BATCH,))
        noisy = points[which, point].to(memory_format=torch.channels_last)
        velocity = unet(noisy, times[point], text[which]).sample
        a = alphas[point].view(-1, 1, 1, 1)
        end = a.sqrt() * noisy - (1 - a).sqrt() * velocity
        loss = functional.huber_loss(end, ends[which], delta=0.5)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99:
            pace = (time.monotonic() - began) / (step + 1)
            log.info("fewstep %d loss %.4f, %.3f s a step", step + 1, np.mean(losses[-100:]), pace)
    save(recipe, get_peft_model_state_dict(unet), output)
