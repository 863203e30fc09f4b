"""A tiny pipeline, a K-LoRA bundle for it, and dense references, for the benchmark's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lorabake
from lorabake.runtime import Bundle

from .. import tiny
from ..oracle import Dense, Shapes, write_lora
from ..runtime import pipes


@dataclass
class Case:
    """A pipeline, a bundle for it, and what is in the two LoRAs."""

    pipe: Any
    bundle: Bundle
    loras: tuple[Dense, Dense]

    def draw(self, steps: int = 6, **more: Any) -> Tensor:
        return self.pipe(
            prompt_embeds=pipes.draw(1, 5, 24, seed=1), latents=pipes.draw(1, 4, 8, 8, seed=0),
            guidance_scale=1.0, num_inference_steps=steps, output_type="latent", **more,
        ).images  # fmt: skip

    def reference(
        self, chosen: Callable[[str, int], tuple[float, float]], steps: int = 6
    ) -> Tensor:
        """An image whose weights are set by hand before each step."""
        clean, case = self.pipe.unet, copy.copy(self)
        case.pipe = copy.copy(self.pipe)
        case.pipe.unet = copy.deepcopy(clean)

        def set_weights(i: int) -> None:
            names = {*self.loras[0].delta, *self.loras[1].delta}
            for name in (name for name in names if name.startswith("unet.")):
                path = name.removeprefix("unet.")
                parts = zip(chosen(name, i), self.loras, strict=True)
                delta = sum(g * lora.delta[name] for g, lora in parts if name in lora.delta)
                weight = clean.get_submodule(path).weight.detach()
                case.pipe.unet.get_submodule(path).weight.data = (weight + delta).float()

        def after(_: Any, i: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
            set_weights(min(i + 1, steps - 1))
            return state

        set_weights(0)
        return case.draw(steps, callback_on_step_end=after)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a way could leave behind in the denoiser."""
        unet = self.pipe.unet
        return {
            "pipe": {name: id(part) for name, part in self.pipe.components.items()},
            "attributes": sorted(vars(unet)),
            "modules": {
                name: (id(m), len(m._forward_hooks), len(m._forward_pre_hooks), m.training)
                for name, m in unet.named_modules()
            },
            "weights": {n: p.detach().clone() for n, p in unet.named_parameters()},
            "flags": {n: (id(p), p.requires_grad) for n, p in unet.named_parameters()},
        }


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    weights = found["weights"]
    return weights.keys() == expected["weights"].keys() and all(
        found[key] == expected[key] if key != "weights" else torch.equal(weights[name], weight)
        for key in expected
        for name, weight in expected["weights"].items()
    )


def shapes(pipe: Any) -> Shapes:
    wanted = ("attn", "conv1", "proj_in")
    return {n: s for n, s in tiny.shapes(pipe).items() if any(w in n for w in wanted)}


def case_of(folder: Path, method: str = "klora") -> Case:
    """With a pipeline of its own; the bundle is baked once in each folder."""
    return Case(pipes.quiet(tiny.sd15()[0]), *_baked(folder, method))


@cache
def _baked(folder: Path, method: str) -> tuple[Bundle, tuple[Dense, Dense]]:
    pipe = tiny.sd15()[0]
    files = [folder / f"{name}.safetensors" for name in ("content", "style")]
    content, style = (write_lora(f, shapes(pipe), "peft", seed) for seed, f in enumerate(files))
    output = folder / f"{method}.safetensors"
    lorabake.make(files[0], files[1], output, method=method, force=True)
    return lorabake.load(output), (content, style)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
