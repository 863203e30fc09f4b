"""Guidance does on the toy world what it is for: R, as its own encoders see it, falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lorabake
from lorabake.demo.showcase import CLIP, DINO, HERE, MODEL, picture_prompt
from lorabake.demo.world import Scene, render
from lorabake.pipelines import load


@pytest.mark.parametrize("through", ["latents", "denoiser"])
def test_r_falls(through: str, tmp_path: Path) -> None:
    for role, scene in {
        "content": Scene("tikku", "red", "white", "flat"),
        "style": Scene("creature", "red", "white", "glass"),
    }.items():
        image = Image.fromarray(render(scene, np.random.default_rng(5)))
        image.save(tmp_path / f"{role}.png")
    given: dict[str, Any] = {
        f"{x}_images": str(tmp_path / f"{x}.png") for x in ("content", "style")
    }
    lorabake.make(
        HERE / "loras" / "tikku.safetensors", HERE / "loras" / "glass.safetensors",
        tmp_path / "b.safetensors", method="dynamic", clip=str(CLIP), dino=str(DINO), **given,
    )  # fmt: skip
    bundle = lorabake.load(tmp_path / "b.safetensors")
    pipe = load(MODEL, device=torch.device("cpu"))
    last: list[float] = []
    for m in (0.0, 10.0):
        with bundle.attach(
            pipe, encoders=lorabake.encoders(bundle, CLIP, DINO), m=m, through=through
        ) as replay:
            noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
            pipe([picture_prompt("tikku", "glass")] * 2, num_inference_steps=4, generator=noise)
        scores = [sum(step["score"]) / 2 for step in replay.report()["guidance"]]
        assert len(scores) == 4
        last.append(scores[-1])
    assert last[1] < last[0] - 0.002
