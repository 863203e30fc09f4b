"""Reading a bundle: manifest, factors and plan of one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .columns import coefficient_rows
from .container import DTYPES, Container
from .errors import BundleError, OverrideError, listed
from .manifest import COEFFICIENT_ROWS, KEY, MAX_RANK, Layer, Manifest, loads
from .overrides import scale_with
from .plan import CONTENT, STYLE, Constant, Live, select, steps_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .fused import Keep
    from .modes import Mode
    from .plan import Half
    from .replay import Replay
    from .score import Encoder

_AGAIN = "The file is damaged or was changed by another tool; make the bundle again"


@dataclass(frozen=True, eq=False)
class Bundle:
    """An open bundle.

    Attributes:
        path: Its file.
        manifest: Everything in it that is not a tensor.
    """

    path: Path
    manifest: Manifest
    _file: Container = field(repr=False)

    def factors(
        self,
        layer: Layer,
        source: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One source's (A, B) of a layer, cut out of the stack, without padding.

        Column coefficients, if there are any, are in A already.

        Args:
            layer: One of `manifest.layers`.
            source: 0 for content, 1 for style.
            device: Where to; the CPU, backed by the file, if not given.
            dtype: What as; the file's dtype if not given.

        Returns:
            down `[r, in]` or `[r, in, kh, kw]`, up `[out, r]` or `[out, r, 1, 1]`; r may be 0.
        """
        start = sum(layer.ranks[:source])
        rows = slice(start, start + layer.ranks[source])
        down, up = self._file.tensor(layer.down)[rows], self._file.tensor(layer.up)[:, rows]
        return down.to(device=device, dtype=dtype), up.to(device=device, dtype=dtype)

    def original(
        self, layer: Layer, source: int, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `factors`, but A without its column coefficients; both float32.

        Raises:
            BundleError: A coefficient is 0 or not finite.
        """
        down, up = self.factors(layer, source, device, torch.float32)
        if layer.columns:
            m = self._columns(layer)[source].to(down.device)
            down = down / m.view(-1, *(1 for _ in down.shape[2:]))
        return down, up

    def coefficients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The column coefficients (ZipLoRA): (m_c, m_s), float32 `[in]`, by layer.

        Layers are named `component.module` and in the manifest's order; those without
        coefficients, where all are 1, are left out.

        Raises:
            OverrideError: No layer has any.
            BundleError: One is 0 or not finite.
        """
        layers = [layer for layer in self.manifest.layers if layer.columns]
        if not layers:
            raise OverrideError(
                f"the method {self.manifest.method} has no column coefficients",
                where=str(self.path),
            )
        return {str(layer): self._columns(layer) for layer in layers}

    def _columns(self, layer: Layer) -> tuple[Tensor, Tensor]:
        try:
            return coefficient_rows(self._file.tensor(layer.down), layer)
        except BundleError as error:
            raise BundleError(error.what, where=str(self.path), advice=_AGAIN) from error

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """Shape of a layer's ΔW: `(out, in)` or `(out, in, kh, kw)`."""
        return (self._file.shape(layer.up)[0], *self._file.shape(layer.down)[1:])

    def select(self, layer: Layer, steps: int, **overrides: float | str) -> list[int | None]:
        """What a layer applies at each of `steps` steps: 0 content, 1 style, None both or live.

        A layer that one source lacks always applies the other.

        Raises:
            OverrideError: `steps` or an override is out of range.
        """
        scale = scale_with(self.manifest, overrides)
        if type(steps) is not int or steps < 1:
            raise OverrideError(
                f"{steps!r} is out of range", where="steps", advice="Give a whole number above 0"
            )
        if 0 in layer.ranks:
            return [STYLE if layer.ranks[CONTENT] == 0 else CONTENT] * steps
        return [select(layer.rule, scale, progress) for progress in steps_of(steps)]

    def selection(self, steps: int, **overrides: float | str) -> Tensor:
        """The plan as a picture: bool `[layers, steps]`, True where style is applied.

        Layers are in the manifest's order; those that apply both sources are False throughout.

        Args:
            steps: How many; step i has progress i / steps.
            **overrides: alpha, beta, gamma or pattern instead of the bundle's.

        Raises:
            OverrideError: `steps` or an override is out of range, or the plan selects nothing.
        """
        layers = self.manifest.layers
        if all(isinstance(layer.rule, Constant | Live) for layer in layers):
            raise OverrideError(
                f"the method {self.manifest.method} chooses live, from features that are not "
                "known yet"
                if self.manifest.live
                else f"the method {self.manifest.method} applies the same all the time, "
                "there is no selection",
                where=str(self.path),
                advice="Make a static bundle of it with `lorabake record`"
                if self.manifest.live
                else "",
            )
        rows = [self.select(layer, steps, **overrides) for layer in layers]
        return torch.tensor([[choice == STYLE for choice in row] for row in rows])

    def intact(self) -> bool:
        """Whether the tensors are, byte for byte, those that the bundle was made with.

        They may lie in another order: tools that save a file again have one of their own.
        """
        wanted = self.manifest.digest
        return self._file.digest() == wanted or self._file.sorted_digest() == wanted

    def verify(self) -> None:
        """Check the tensor bytes against the manifest's digest, and that the numbers are usable.

        Raises:
            BundleError: They differ, one is not finite, or a column coefficient is 0.
        """
        if not self.intact():
            raise BundleError(
                "its tensors are not those it was made with (the digest differs)",
                where=str(self.path),
                advice=_AGAIN,
            )
        self.check_finite()
        if self.manifest.columns:
            self.coefficients()

    def check_finite(self) -> None:
        """Read every tensor for NaN and infinity, which would spread over a whole image.

        Raises:
            BundleError: One is not finite.
        """
        keys = (key for layer in self.manifest.layers for key in (layer.down, layer.up))
        if odd := [key for key in keys if not self._file.finite(key)]:
            raise BundleError(
                f"tensors hold NaN or infinity: {listed(odd)}",
                where=str(self.path),
                advice="Make the bundle again, from LoRAs whose weights are finite",
            )

    def attach(
        self,
        pipe: Any,  # noqa: ANN401 - anything with a unet or transformer and a scheduler
        mode: Mode = "auto",
        content_strength: float = 1.0,
        style_strength: float = 1.0,
        keep: Keep = "device",
        guidance: bool = True,
        encoders: Mapping[str, Encoder] | None = None,
        decoder: Any = None,  # noqa: ANN401 - anything like a VAE of diffusers
        half: Half | None = None,
        **overrides: float | str,
    ) -> Replay:
        """Replay the plan in a pipeline until `detach()` or the end of a `with` block.

        What is chosen live is kept for the replay's `report()`, a byte per layer, sample and call.

        Args:
            pipe: Anything with a `unet` or `transformer` and a `scheduler`.
            mode: `fused` computes W0 + ΔW in place when the selection changes, `hooks` leaves the
                weights alone and adds the selected branch, `auto` takes fused where that is exact
                (the replay's `report()` says where not, and why). What is to be chosen live is so
                in any of them but `fused`; `live` insists that something is.
            content_strength: Factor on the content LoRA; the selection stays as it is.
            style_strength: Factor on the style LoRA; the selection stays as it is.
            keep: Where `fused` keeps the original weights: on their device, or on the `cpu`
                (pinned) where its memory is short.
            guidance: Whether the latents are guided, if the bundle has references for that.
            encoders: The image encoders that it is guided by: `clip` and `dino`, each from images
                `[n, 3, height, width]` in [0, 1] to embeddings `[n, d]`.
            decoder: Decodes x̂_0 for them in the place of the pipeline's VAE: a tiny autoencoder,
                for example.
            half: `conditional` lets the LoRAs act in the conditional half of classifier-free
                guidance alone (arXiv 2602.18936), `both` in both halves; None is the bundle's own.
                Where there is no such guidance it changes nothing, and a warning says so.
            **overrides: Values instead of the bundle's: alpha, beta, gamma, pattern (K-LoRA);
                criterion, temperature, scope, tokens (live); m, every, through, w_clip_content,
                w_clip_style, w_dino_style (guidance).

        Raises:
            AttachError: The bundle does not fit the pipeline, an encoder is missing or not the
                bundle's, which half is which is not known of it, or one is attached already; the
                pipeline is as it was.
            BundleError: A tensor is not finite; likewise.
            OverrideError: A value is unknown or out of range.
        """
        from .replay import attach
        from .seeing import Seeing

        strengths = {"content_strength": content_strength, "style_strength": style_strength}
        seeing = Seeing(encoders or {}, decoder) if guidance else None
        return attach(self, pipe, mode, keep, strengths, overrides, seeing, half)


def read(path: str | PathLike[str], *, verify: bool = False) -> Bundle:
    """Open a bundle.

    Args:
        path: A file on this machine.
        verify: Also check digest and finiteness, which reads the whole file.

    Raises:
        BundleError: It is no bundle (an ordinary LoRA, for example), damaged, or too new.
    """
    file = Container(Path(path))
    where = str(path)
    if KEY not in file.metadata:
        kind = "an ordinary LoRA" if any("lora" in key for key in file.keys) else "something else"
        raise BundleError(
            f"this is {kind}, not a bundle: its metadata holds no `{KEY}` manifest",
            where=where,
            advice="Make a bundle of two LoRAs with `lorabake make`. If it was a bundle once, "
            "another tool has stripped its metadata when saving it, and its plan is lost: make it "
            "again, or load it like any other LoRA (load_lora_weights), which applies both all "
            "the time",
        )
    try:
        manifest = loads(file.metadata[KEY])
        _check_tensors(file, manifest)
    except BundleError as error:
        inner = f"{error.where}: {error.what}" if error.where else error.what
        raise BundleError(inner, where=where, advice=error.advice) from error
    bundle = Bundle(Path(path), manifest, file)
    if verify:
        bundle.verify()
    return bundle


def _check_tensors(file: Container, manifest: Manifest) -> None:
    keys = {key for layer in manifest.layers for key in (layer.down, layer.up)}
    for found, names in (("missing", keys - file.keys), ("not in the manifest", file.keys - keys)):
        if names:
            raise BundleError(f"tensors are {found}: {listed(sorted(names))}", advice=_AGAIN)
    ranks: dict[str, int] = {}
    for layer in manifest.layers:
        rank = _check_shapes(file, layer)
        if ranks.setdefault(layer.component, rank) != rank:
            raise BundleError(
                f"{layer} has rank {rank}, other layers of {layer.component} "
                f"have {ranks[layer.component]}",
                advice=_AGAIN,
            )


def _check_shapes(file: Container, layer: Layer) -> int:
    """The rank R of a layer's stack, after its tensors have proved to be one."""
    down, up = file.shape(layer.down), file.shape(layer.up)
    shapes = f"{layer} has a down of shape {list(down)} and an up of shape {list(up)}"
    if len(down) not in (2, 4) or up[1:] != (down[0], 1, 1)[: len(down) - 1] or 0 in (*down, *up):
        raise BundleError(f"{shapes}, which are no low-rank factors", advice=_AGAIN)
    if down[0] > MAX_RANK:
        raise BundleError(f"{shapes}; the limit of a rank is {MAX_RANK}", advice=_AGAIN)
    if sum(layer.ranks) + COEFFICIENT_ROWS * layer.columns > down[0]:
        rows = " and column coefficients" if layer.columns else ""
        raise BundleError(
            f"{shapes}, too small for the ranks {list(layer.ranks)}{rows}", advice=_AGAIN
        )
    for key in (layer.down, layer.up):
        if file.dtype(key) not in DTYPES:
            raise BundleError(f"{key} is {file.dtype(key)}, not {listed([*DTYPES])}", advice=_AGAIN)
    return down[0]
