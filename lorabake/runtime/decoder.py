"""From latents to the picture that the encoders of a guidance see, with a gradient."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import AttachError
from .score import place

_ADVICE = "Pass a decoder of the model's latents as decoder=, or attach with guidance=False"


class Decoder:
    """A VAE of images, or anything else that decodes and is configured like one.

    Args:
        pipe: A pipeline of diffusers.
        given: Decodes in the place of the pipeline's VAE: `decode(z, return_dict=False)[0]` gives
            images in [−1, 1], and `config` has `scaling_factor`, if needed `shift_factor`, or
            `latents_mean` and `latents_std`, as those of diffusers have.
        where: The bundle, for messages.

    Raises:
        AttachError: There is none, or it is not one of images.
    """

    def __init__(self, pipe: Any, given: Any, where: str) -> None:  # noqa: ANN401 - any pipeline, any VAE
        self.vae: Any = getattr(pipe, "vae", None) if given is None else given
        self._pipe, self._where = pipe, where
        factor = getattr(getattr(self.vae, "config", None), "scaling_factor", None)
        if not callable(getattr(self.vae, "decode", None)) or not isinstance(factor, int | float):
            which = f"the {type(self.vae).__name__} of {type(pipe).__name__}"
            if given is not None:
                which = f"decoder={type(given).__name__}"
            elif self.vae is None:
                which = f"{type(pipe).__name__} without a VAE"
            raise AttachError(
                f"guidance needs pictures, and {which} cannot decode latents into them",
                where=where,
                advice=_ADVICE,
            )

    def images(self, latents: Tensor, ids: Tensor | None = None) -> Tensor:
        """The picture of latents, as their pipeline would decode them but not clamped.

        A value outside of [0, 1] is shown as the limit, yet a clamp would take its gradient away,
        and with it the only way back; early x̂_0 have many of those.

        Args:
            latents: `[n, channels, height, width]`, or packed `[n, tokens, 4 · channels]`.
            ids: Row and column of each token, `[tokens, 3]`, for packed ones.

        Returns:
            `[n, 3, height, width]` with black at 0 and white at 1, in the latents' dtype.

        Raises:
            AttachError: The latents are of another kind, or what comes out is no image.
        """
        z = self._scaled(self._spatial(latents, ids))
        found = self.vae.decode(z.to(*place(self.vae, z)), return_dict=False)[0]
        if found.ndim != 4 or found.shape[:2] != (latents.shape[0], 3):
            raise self._refusal(f"decodes to {list(found.shape)}, which are not images")
        if latents.requires_grad and not found.requires_grad:
            raise self._refusal("lets no gradient through")
        return found.to(latents) / 2 + 0.5

    @contextmanager
    def precise(self) -> Generator[None]:
        """In float32 where its makers say that float16 overflows; then the same weights again."""
        kept: list[tuple[Tensor, Tensor]] = []
        if isinstance(self.vae, nn.Module) and getattr(self.vae.config, "force_upcast", False):
            held = (*self.vae.parameters(), *self.vae.buffers())
            kept = [(x, x.data) for x in held if x.dtype == torch.float16]
        try:
            for x, half in kept:
                x.data = half.float()
            yield
        finally:
            for x, half in kept:
                x.data = half

    def _spatial(self, latents: Tensor, ids: Tensor | None) -> Tensor:
        unpack = getattr(self._pipe, "_unpack_latents", None)
        if latents.ndim == 3 and unpack is not None and ids is not None:
            of = ids.reshape(-1, ids.shape[-1])[: latents.shape[1]]
            factor = self._pipe.vae_scale_factor
            # A token is a patch of 2 × 2.
            height, width = (2 * factor * (int(of[:, i].max()) + 1) for i in (1, 2))
            latents = unpack(latents, height, width, factor)
        channels = getattr(self.vae.config, "latent_channels", None)
        if latents.ndim != 4 or (channels is not None and latents.shape[1] != channels):
            raise self._refusal(f"cannot decode latents of shape {list(latents.shape)}")
        return latents

    def _scaled(self, z: Tensor) -> Tensor:
        config = self.vae.config
        mean, std = (getattr(config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            mean, std = (z.new_tensor(x).view(1, -1, 1, 1) for x in (mean, std))
            return z * std / config.scaling_factor + mean
        return z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)

    def _refusal(self, what: str) -> AttachError:
        return AttachError(
            f"{type(self.vae).__name__} {what}, and guidance needs pictures",
            where=self._where,
            advice=_ADVICE,
        )
