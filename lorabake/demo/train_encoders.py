"""Train two small image encoders that stand for CLIP and DINO; neither sees a held-out word."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from . import models
from .data import scene_of, to_tensor
from .figures import SUBJECTS
from .looks import NEW_STYLES, STYLES
from .train_scorer import worn
from .training import Untyped, cosine
from .views import PICTURES, stock, view
from .world import CLASSES, SIZE, Scene, caption, render, sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

BATCH, RATE, VARIANTS = 128, 1e-3, 4
STEPS = {"clip": 1800, "dino": 900}
WIDTH, SHARED = 96, 64
SHAPE: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
}
log = logging.getLogger(__name__)


def contrast(a: Tensor, b: Tensor, sharpness: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018) of row i of ``a`` with row i of ``b``.

    ``same`` ([n, n], bool) marks further pairs that belong together.
    """
    near = functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T
    near = near * sharpness.exp().clamp(max=100)
    truth = torch.eye(len(a)) if same is None else same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(near, truth) + functional.cross_entropy(near.T, truth)) / 2


def clip(stack: NDArray[np.uint8]) -> tuple[Untyped, nn.Module, Callable[[Tensor], Tensor]]:
    """A vision model, what it is trained with, and the loss of the pictures with given numbers."""
    model: Untyped = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, projection_dim=SHARED))
    tokens = models.tokenizer()
    text: Untyped = models.text_encoder(tokens)
    project, sharpness = nn.Linear(WIDTH, SHARED, bias=False), nn.Parameter(torch.tensor(2.66))
    rng, texts = np.random.default_rng(22), list[str]()
    for seed in range(PICTURES):
        for _ in range(VARIANTS):
            ground, colour, style = (bool(p) for p in rng.random(3) < (0.5, 0.5, 0.85))
            texts.append(caption(scene_of(seed), colour=colour, ground=ground, style=style))
    ids = tokens(texts, padding="max_length", return_tensors="pt").input_ids
    ids = ids.view(PICTURES, VARIANTS, -1)

    def loss(which: Tensor) -> Tensor:
        seen = view(_draw(stack, which), 0.85, 0.03)
        said = ids[which, torch.randint(VARIANTS, (len(which),))]
        same = (said[:, None] == said).all(-1)
        words = project(text(said).pooler_output)
        return contrast(model(pixel_values=seen).image_embeds, words, sharpness, same)

    extra = nn.ModuleList([text, project])
    extra.register_parameter("sharpness", sharpness)
    return model, extra, loss


def dino(stack: NDArray[np.uint8]) -> tuple[Untyped, nn.Module, Callable[[Tensor], Tensor]]:
    """The same without captions: two views of one picture belong together."""
    model: Untyped = ViTModel(ViTConfig(**SHAPE), add_pooling_layer=False)
    head = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, SHARED))
    sharpness = nn.Parameter(torch.tensor(2.3))

    def loss(which: Tensor) -> Tensor:
        seen = [view(_draw(stack, which), 0.45, 0.12) for _ in range(2)]
        a, b = head(model(pixel_values=torch.cat(seen)).last_hidden_state[:, 0]).chunk(2)
        return contrast(a, b, sharpness)

    head.register_parameter("sharpness", sharpness)
    return model, head, loss


def _draw(stack: NDArray[np.uint8], which: Tensor) -> Tensor:
    return to_tensor(stack[torch.randint(2, (len(which),)).numpy(), which.numpy()])


def train(work: Path, vae: Path, output: Path, name: str) -> None:
    """Train ``clip`` or ``dino`` and save it as stock transformers loads it."""
    stack = stock(work, vae)
    torch.manual_seed(23)
    model, extra, loss_of = {"clip": clip, "dino": dino}[name](stack)
    weights = [*model.parameters(), *extra.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.05, fused=True)
    steps, losses = STEPS[name], list[float]()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, steps)
        loss = loss_of(torch.randperm(PICTURES)[:BATCH])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log.info("%s %d loss %.4f", name, step + 1, np.mean(losses[-100:]))
    pack(model, output)
    model.eval()
    for worlds in ((CLASSES, STYLES), (SUBJECTS, (*STYLES, *NEW_STYLES)), (SUBJECTS, NEW_STYLES)):
        for wear in (0.0, 0.3):
            log.info(
                "%s %s worn %.1f: %s", name, worlds, wear, separation(model, vae, *worlds, wear)
            )


def pack(model: Untyped, output: Path) -> None:
    """Save weights in half precision, a config that asks for float32, and the preprocessor."""
    processor = (
        CLIPImageProcessorPil if hasattr(model, "visual_projection") else ViTImageProcessorPil
    )
    crop = {"crop_size": SIZE} if processor is CLIPImageProcessorPil else {}
    grey: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": SIZE} if crop else {"height": SIZE, "width": SIZE}
    model.half().save_pretrained(output)
    processor(size=size, **crop, **grey).save_pretrained(output)
    path = output / "config.json"
    # Half precision is for the size of the file only; a plain from_pretrained gives float32.
    content = json.loads(path.read_text()) | {"dtype": "float32"}
    content.pop("_name_or_path", None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    model.float()


@torch.no_grad()
def separation(
    model: Untyped, vae: Path, figures: tuple[str, ...], styles: tuple[str, ...], wear: float
) -> str:
    """Cosines between unseen renders that share a figure only, a style only, or neither."""
    scenes: list[Scene] = []
    drawn: list[NDArray[np.uint8]] = []
    for i in range(240):
        rng = np.random.default_rng((24, i))
        scenes.append(sample_scene(rng, figures, styles))
        drawn.append(render(scenes[-1], rng))
    x = to_tensor(np.stack(drawn))
    if wear:
        torch.manual_seed(25)
        coder = AutoencoderKL.from_pretrained(vae).eval()
        x = torch.cat([worn(coder, part, wear) for part in x.split(40)])
    out = model(pixel_values=x)
    raw = out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]
    unit = functional.normalize(raw, dim=1)
    near = (unit @ unit.T).triu(1)
    figure, style = (
        torch.tensor([[a == b for b in labels] for a in labels])
        for labels in ([s.figure for s in scenes], [s.style for s in scenes])
    )
    pairs = torch.ones_like(near).triu(1).bool()
    neither = near[pairs & ~figure & ~style]
    lines = [f"neither {neither.mean():.3f} ± {neither.std():.3f}"]
    for label, kind in (("figure", figure & ~style), ("style", style & ~figure)):
        same = near[pairs & kind]
        auc = (same[:, None] > neither[torch.randperm(len(neither))[:2000]]).float().mean()
        lines.append(f"{label} {same.mean():.3f} ± {same.std():.3f}, AUC {auc:.3f}")
    return "; ".join(lines)
