"""A pipeline, a bundle for its layers, and how to render and to compare."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorabake.errors import AttachError
from lorabake.runtime import Replay, read

from ..runtime.naive_bundle import Spec, one_of_each, write
from ..runtime.pipes import draw
from .hand import by_branches, by_weights

CLEAR = 0.05
"""By how much the base's output must differ from what is replayed, for a test to mean anything."""


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def render(
    pipe: Any,
    steps: int,
    *,
    seed: int = 0,
    batch: int = 1,
    height: int = 8,
    width: int = 8,
    length: int = 5,
    guidance: float = 5.0,
    **more: Any,
) -> Tensor:
    """Latents of a run with random embeddings in the place of a prompt, in the pipeline's dtype."""
    flux = hasattr(pipe, "transformer")
    dtype = (pipe.transformer if flux else pipe.unet).dtype
    shape = (height * width // 4, 4) if flux else (4, height, width)
    images = batch * more.get("num_images_per_prompt", 1)
    inputs: dict[str, Any] = {
        "latents": draw(images, *shape, seed=seed).to(dtype),
        "prompt_embeds": draw(batch, length, 12, seed=seed + 1).to(dtype),
        "guidance_scale": guidance,
        "output_type": "latent",
        "height": 8 * height,
        "width": 8 * width,
    }
    if flux:
        inputs["pooled_prompt_embeds"] = draw(batch, 10, seed=seed + 3).to(dtype)
    elif guidance > 1:
        inputs["negative_prompt_embeds"] = draw(batch, length, 12, seed=seed + 2).to(dtype)
    inputs |= more
    return pipe(num_inference_steps=steps, **inputs).images


class Stage:
    """A pipeline and a bundle for it.

    Args:
        pipe: Around a tiny denoiser.
        folder: Where the bundle is written.
        seed: Of the factors.
        plain: The denoiser as it was before its weights were packed, if they are.
        more: Layers of other components.
        **options: For the writer of the bundle.
    """

    def __init__(
        self,
        pipe: Any,
        folder: Path,
        seed: int = 0,
        *,
        plain: nn.Module | None = None,
        more: Sequence[Spec] = (),
        **options: Any,
    ) -> None:
        self.pipe = pipe
        self.name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        roots: dict[str, nn.Module] = {self.name: plain or self.root}
        self.specs = [*one_of_each(self.name, roots[self.name], seed), *more]
        roots |= {spec.component: getattr(pipe, spec.component) for spec in more}
        path = folder / f"{id(self)}.safetensors"
        self.bundle = read(write(path, self.specs, roots, seed=seed + 1, **options))

    @property
    def root(self) -> Any:
        return getattr(self.pipe, self.name)

    def twin(self) -> Any:
        """The pipeline again, with parts of its own."""
        return copy.deepcopy(self.pipe)

    def base(self, steps: int, **inputs: Any) -> Tensor:
        return render(self.pipe, steps, **inputs)

    def expected(self, steps: int, positions: Sequence[int] | None = None, **inputs: Any) -> Tensor:
        """What the weights W0 + ΔW make of these inputs."""
        twin = self.twin()
        with by_weights(getattr(twin, self.name), self.specs, positions or range(steps)):
            return render(twin, steps, **inputs)

    def beside(self, steps: int, **inputs: Any) -> Tensor:
        """What the layers as they are and a dense ΔW·x in float32 beside them make of these."""
        with by_branches(self.root, self.specs, range(steps)):
            return self.base(steps, **inputs)


def settle(
    play: Callable[[], Tensor], expected: Tensor, naming: Sequence[str], tolerance: float = 1e-5
) -> bool:
    """Whether what was played was refused, in words that name one of these; else it is right."""
    try:
        found = play()
    except AttachError as refusal:
        if not any(name in str(refusal) for name in naming):
            raise
        return True
    assert (off := error(found, expected)) <= tolerance, f"off by {off:.1e}"
    return False


def verdict(replay: Replay, mode: str) -> str:
    """What a page says of a mode that works; of `auto` also what it has chosen."""
    rows = replay.report()["layers"]
    assert all(bool(row["why"]) == (row["mode"] == "hooks") for row in rows)
    chosen = {row["mode"] for row in rows}
    if mode != "auto":
        assert chosen == {mode}
        return "yes"
    return "hooks where not dense" if len(chosen) == 2 else f"all {chosen.pop()}"


def names(stage: Stage) -> list[str]:
    return [spec.module for spec in stage.specs]


def bits(root: nn.Module) -> dict[str, Any]:
    """Every parameter and buffer, byte by byte, and what hangs on every module."""
    found: dict[str, Any] = {}
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        found[name] = [(part.dtype, part.shape, _bytes(part)) for part in _parts(tensor.data)]
    for name, module in root.named_modules():
        hooks = {k: list(v) for k, v in vars(module).items() if k.endswith(("hooks", "kwargs"))}
        found[f"{name} is"] = (type(module), sorted(vars(module)), hooks)
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _parts(tensor: Any) -> list[Tensor]:
    """The dense tensors that a packed one consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor.as_subclass(Tensor)]
