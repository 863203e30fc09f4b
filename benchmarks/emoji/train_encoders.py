"""Train three small encoders that stand for CLIP, DINO and CSD; none sees what is held out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from lorabake.demo.training import Untyped, cosine
from lorabake.demo.views import view

from . import models
from .data import Drawings, to_tensor
from .looks import COLOURS, SIZE
from .train_scorer import worn
from .world import BASE_THINGS, STYLES, Scene, caption

BATCH, RATE, COPIES, WEAR = 128, 1e-3, 8, 0.2
STEPS = {"clip": 1500, "dino": 1200, "csd": 600}
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
Loss = Callable[[Tensor], Tensor]


def contrast(a: Tensor, b: Tensor, sharpness: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018) of row i of ``a`` with row i of ``b``.

    ``same`` ([n, n], bool) marks further pairs that belong together.
    """
    near = functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T
    near = near * sharpness.exp().clamp(max=100)
    truth = torch.eye(len(a)) if same is None else same / same.sum(1, keepdim=True)
    return (functional.cross_entropy(near, truth) + functional.cross_entropy(near.T, truth)) / 2


class Stock:
    """Pictures of the base world, half of them worn, with what they show.

    Attributes:
        pictures: [n, 3, 64, 64] in [-1, 1].
        scenes: One per picture.
        things: Number of the thing of each, [n].
        styles: Number of the style of each, [n].
    """

    def __init__(self, drawings: Drawings, vae: Untyped) -> None:
        rng, pictures = np.random.default_rng(22), []
        self.scenes: list[Scene] = []
        for thing in BASE_THINGS:
            for style in STYLES:
                if drawings.get(style, thing) is not None:
                    for _ in range(COPIES):
                        scene = Scene(thing, str(rng.choice(list(COLOURS))), style)
                        self.scenes.append(scene)
                        pictures.append(drawings.picture(style, thing, scene.colour, rng))
        self.pictures = to_tensor(np.stack(pictures))
        half = torch.randperm(len(pictures))[: len(pictures) // 2]
        with torch.no_grad():
            tired = [
                worn(vae, p, WEAR * float(torch.rand(()))) for p in self.pictures[half].split(50)
            ]
        self.pictures[half] = torch.cat(tired)
        self.things = torch.tensor([BASE_THINGS.index(s.thing) for s in self.scenes])
        self.styles = torch.tensor([[*STYLES].index(s.style) for s in self.scenes])

    def partners(self, which: Tensor, labels: Tensor) -> Tensor:
        """For each of these pictures the number of another one with the same label."""
        chosen = [torch.nonzero(labels == labels[i]).flatten() for i in which]
        return torch.stack([same[torch.randint(len(same), ())] for same in chosen])


def clip(stock: Stock) -> tuple[Untyped, nn.Module, Loss]:
    """Which caption belongs to which picture."""
    tokens = models.tokenizer()
    text = models.text_encoder(tokens).config.to_dict()
    model: Untyped = CLIPModel(
        CLIPConfig(text_config=text, vision_config=dict(SHAPE), projection_dim=SHARED)
    )
    texts = [(s.thing, s.colour, s.style) for s in stock.scenes]

    def loss(which: Tensor) -> Tensor:
        kept = torch.rand(len(which), 2) < torch.tensor([0.5, 0.85])
        said = [
            caption(thing, colour * bool(ground), style * bool(look))
            for (thing, colour, style), (ground, look) in zip(
                [texts[i] for i in which], kept.tolist(), strict=True
            )
        ]
        ids = tokens(said, padding="max_length", return_tensors="pt").input_ids
        same = (ids[:, None] == ids).all(-1)
        out = model(input_ids=ids, pixel_values=view(stock.pictures[which], 0.85, 0.03))
        return contrast(out.image_embeds, out.text_embeds, model.logit_scale, same)

    return model, nn.Module(), loss


def dino(stock: Stock) -> tuple[Untyped, nn.Module, Loss]:
    """What a picture shows, whoever drew it: the same thing by another set belongs together."""
    model: Untyped = ViTModel(ViTConfig(**SHAPE), add_pooling_layer=False)
    head = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, SHARED))
    head.register_parameter("sharpness", sharpness := nn.Parameter(torch.tensor(2.3)))

    def loss(which: Tensor) -> Tensor:
        other = stock.partners(which, stock.things)
        seen = torch.cat([view(stock.pictures[i], 0.7, 0.08) for i in (which, other)])
        a, b = head(model(pixel_values=seen).last_hidden_state[:, 0]).chunk(2)
        same = stock.things[which][:, None] == stock.things[which]
        return contrast(a, b, sharpness, same)

    return model, head, loss


def csd(stock: Stock) -> tuple[Untyped, nn.Module, Loss]:
    """How a picture is drawn, whatever it shows: another thing by the same set belongs together.

    After contrastive style descriptors (arXiv 2404.01292).
    """
    model: Untyped = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, projection_dim=SHARED))
    extra = nn.Module()
    extra.register_parameter("sharpness", sharpness := nn.Parameter(torch.tensor(2.3)))

    def loss(which: Tensor) -> Tensor:
        other = stock.partners(which, stock.styles)
        seen = torch.cat([view(stock.pictures[i], 0.75, 0.01) for i in (which, other)])
        a, b = model(pixel_values=seen).image_embeds.chunk(2)
        same = stock.styles[which][:, None] == stock.styles[which]
        return contrast(a, b, sharpness, same)

    return model, extra, loss


def train(work: Path, drawings: Drawings, vae: Path, output: Path) -> None:
    """Train all three and save them as stock transformers loads them."""
    torch.manual_seed(21)
    coder: Untyped = AutoencoderKL.from_pretrained(vae).eval()
    stock = Stock(drawings, coder)
    for name, make in (("clip", clip), ("dino", dino), ("csd", csd)):
        torch.manual_seed(23)
        model, extra, loss_of = make(stock)
        _run(name, stock, [*model.parameters(), *extra.parameters()], loss_of)
        pack(model, output / name)
        for worn_by in (0.0, WEAR):
            log.info("%s worn %.1f: %s", name, worn_by, separation(model, drawings, coder, worn_by))


def _run(name: str, stock: Stock, weights: list[nn.Parameter], loss_of: Loss) -> None:
    optimiser = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.05, fused=True)
    losses = list[float]()
    for step in range(STEPS[name]):
        optimiser.param_groups[0]["lr"] = RATE * cosine(step, STEPS[name])
        loss = loss_of(torch.randperm(len(stock.scenes))[:BATCH])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 99:
            log.info("%s %d loss %.4f", name, step + 1, np.mean(losses[-100:]))


def pack(model: Untyped, output: Path) -> None:
    """Save weights in half precision, a config that asks for float32, and the preprocessor."""
    vit = isinstance(model, ViTModel)
    processor = ViTImageProcessorPil if vit else CLIPImageProcessorPil
    crop = {} if vit else {"crop_size": SIZE}
    grey: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"height": SIZE, "width": SIZE} if vit else {"shortest_edge": SIZE}
    model.half().save_pretrained(output)
    processor(size=size, **crop, **grey).save_pretrained(output)
    if isinstance(model, CLIPModel):
        models.tokenizer().save_pretrained(output)
    path = output / "config.json"
    # Half precision is for the size of the file only; a plain from_pretrained gives float32.
    content = json.loads(path.read_text()) | {"dtype": "float32"}
    content.pop("_name_or_path", None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    model.float()


@torch.no_grad()
def embed(model: Untyped, x: Tensor) -> Tensor:
    """Unit embeddings, [n, d], of pictures in [-1, 1]."""
    if isinstance(model, CLIPModel):
        model = lambda pixel_values, model=model: model.visual_projection(  # noqa: E731
            model.vision_model(pixel_values=pixel_values).pooler_output
        )
        return functional.normalize(torch.cat([model(pixel_values=p) for p in x.split(100)]), dim=1)
    out = [model(pixel_values=p) for p in x.split(100)]
    raw = [o.image_embeds if "image_embeds" in o else o.last_hidden_state[:, 0] for o in out]
    return functional.normalize(torch.cat(raw), dim=1)


@torch.no_grad()
def separation(model: Untyped, drawings: Drawings, vae: Untyped, wear: float) -> str:
    """Cosines between unseen renders of held-out things in held-out styles, and how they rank."""
    from .train_scorer import renders
    from .world import NEW_STYLES, SUBJECTS

    x, things, styles = renders(drawings, (tuple(SUBJECTS), tuple(NEW_STYLES)), 4, 24)
    if wear:
        torch.manual_seed(25)
        x = torch.cat([worn(vae, part, wear) for part in x.split(40)])
    unit = embed(model, x)
    near, pairs = unit @ unit.T, torch.ones(len(x), len(x)).triu(1).bool()
    thing, style = (labels[:, None] == labels for labels in (things, styles))
    neither = near[pairs & ~thing & ~style]
    lines = [f"neither {neither.mean():.3f} ± {neither.std():.3f}"]
    for label, kind in (("thing", thing & ~style), ("style", style & ~thing)):
        same = near[pairs & kind]
        auc = (same[:, None] > neither[torch.randperm(len(neither))[:2000]]).float().mean()
        lines.append(f"same {label} {same.mean():.3f} ± {same.std():.3f}, AUC {auc:.3f}")
    return "; ".join(lines)
