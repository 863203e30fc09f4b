"""Embedding images with a model of transformers, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Statistics = tuple[list[float], list[float]]
"""Mean and deviation per channel."""


class Encoder(nn.Module):
    """One embedding per image; frozen, but gradients flow to the images.

    Args:
        model: Of transformers, takes `pixel_values`.
        clip: Whether it gives CLIP's projected embedding; else the CLS token of the last layer.
        size: Height and width of the images that the model takes.
        statistics: What images are normalised with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, clip: bool, size: int, statistics: Statistics) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.clip, self.size = clip, size
        first = next(model.parameters())
        for name, values in zip(("mean", "std"), statistics, strict=True):
            found = torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            self.register_buffer(name, found.to(first.device, first.dtype), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Embed images: shorter side to the model's size (bicubic), middle square, normalised.

        Args:
            images: `[n, 3, height, width]` in [0, 1], of any float dtype and size.

        Returns:
            `[n, d]` in the model's dtype, not of unit length.
        """
        # Half precision has no resampling on every device.
        exact = torch.promote_types(self.mean.dtype, torch.float32)
        x = self._square(images.to(self.mean.device, exact))
        x = (x.to(self.mean.dtype) - self.mean) / self.std
        found = self.model(pixel_values=x)
        return found.image_embeds if self.clip else found.last_hidden_state[:, 0]

    def _square(self, x: Tensor) -> Tensor:
        size, (height, width) = self.size, x.shape[-2:]
        short = min(height, width)
        if short != size:
            shape = [height * size // short, width * size // short]
            x = functional.interpolate(x, shape, mode="bicubic", antialias=True)
        top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
        return x[..., top : top + size, left : left + size]
