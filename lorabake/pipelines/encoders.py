"""Image encoders, CLIP and DINO, by folder or hub id."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ..device import device as device_named
from ..errors import BaseModelError, OverrideError, listed
from ..lora.hub import reach, reason
from ..place import expanded, kind
from ..runtime import Bundle
from .blame import blame
from .embed import Encoder, Statistics

__all__ = ["CLIP", "DINO", "Encoder", "at_hand", "digest", "encoders", "load", "locate", "recorded"]

CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dino-vits16"

_WEIGHTS = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


def load(name: str | Path, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Encoder:
    """Load an image encoder, from safetensors only.

    Args:
        name: Folder of transformers, or id on the Hugging Face hub: a CLIP model, or one with a
            CLS token such as DINO, DINOv2 and ViT. A folder that does not say how images are
            normalised gets CLIP's statistics, or ImageNet's.
        device: Where it goes.
        dtype: Of its weights.

    Raises:
        BaseModelError: There is no such folder, it is damaged or not an image encoder, has its
            weights as a pickle, or the hub cannot be reached.
    """
    where = locate(name)
    with blame(
        "cannot be loaded as an image encoder",
        where=str(name),
        advice="Check the name and the connection, or name a local folder"
        if isinstance(where, str)
        else "Save or download it again, or name another: CLIP or a ViT with a CLS token",
    ):
        from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

        config: Any = AutoConfig.from_pretrained(where, trust_remote_code=False)
        clip: bool = config.model_type in ("clip", "clip_vision_model")
        if config.model_type == "clip":  # the text tower stays on the disk
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        loader: Any = CLIPVisionModelWithProjection if clip else AutoModel
        model, info = loader.from_pretrained(
            where, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        _check_whole(info["missing_keys"], str(name))
        size = _check_kind(model, clip, str(name))
        encoder = Encoder(model.to(device), clip, size, _statistics(where, clip))
        with torch.no_grad():  # what cannot embed is told now
            found = encoder(torch.full((1, 3, size, size), 0.5))
        if not found.isfinite().all():
            raise BaseModelError(
                "gives NaN or Inf for a grey image", where=str(name),
                advice="Save or download it again, or check image_std in its preprocessor_config",
            )  # fmt: skip
    return encoder


def encoders(
    bundle: Bundle,
    clip: str | Path | None = None,
    dino: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, Encoder]:
    """The two image encoders that guide a bundle's latents, for `attach(encoders=…)`.

    Args:
        bundle: One that has references; of it only ids on the hub are taken, never a path.
        clip: Folder or hub id of the CLIP encoder, instead of the one that the bundle names.
        dino: Likewise of the DINO encoder.
        device: Where they go.

    Returns:
        By the names `clip` and `dino`; each from images `[n, 3, height, width]` in [0, 1] to
        embeddings `[n, d]`.

    Raises:
        OverrideError: The bundle has no references.
        BaseModelError: It names no id on the hub, or an encoder cannot be loaded.
        RecipeError: There is no such device.
    """
    guidance = bundle.manifest.guidance
    if guidance is None:
        raise OverrideError(
            "this bundle has no references to guide latents by",
            where=str(bundle.path),
            advice="Attach it without encoders, or make it with the method dynamic and guide=on",
        )
    given = {"clip": (clip, guidance.clip), "dino": (dino, guidance.dino)}
    names = {role: _trusted(role, told) if own is None else own
             for role, (own, told) in given.items()}  # fmt: skip
    place = device if isinstance(device, torch.device) else device_named(device)
    return {role: load(name, device=place) for role, name in names.items()}


def at_hand(name: str | Path) -> Path | str:
    """Where an encoder can be loaded from now: a folder, also of the cache, or a hub id.

    Raises:
        BaseModelError: There is no such folder; or it is an id, the hub does not answer, and the
            cache does not have it either. That is told at once.
    """
    if isinstance(where := locate(name), Path):
        return where
    try:
        return reach(where) or where
    except Exception as error:  # the hub's client raises dozens of types
        what, advice = reason(error)
        raise BaseModelError(
            f"cannot be had from the hub ({what})", where=where, advice=advice
        ) from error


def digest(name: str | Path) -> str:
    """Hex SHA-256 of an encoder's weights as they lie in its folder or in the hub's cache.

    Of several files that of their digests in a row, by their names; empty where they cannot be
    told, for example because the hub converts them on the way.
    """
    if isinstance(where := locate(name), str):
        from transformers.utils.hub import cached_file

        with blame("cannot be found", where=where, advice="Check the connection"):
            found = cached_file(where, _WEIGHTS, _raise_exceptions_for_missing_entries=False)
        files = [Path(found)] if found else []
    else:
        whole = where / _WEIGHTS
        files = [whole] if kind(whole) == "file" else sorted(where.glob("*.safetensors"))
    each: list[str] = []
    for file in files:
        with file.open("rb") as stream:
            each.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(each) < 2:
        return "".join(each)
    return hashlib.sha256("".join(each).encode()).hexdigest()


def recorded(name: str | Path) -> str:
    """What a bundle calls an encoder: a hub id as it is, a folder by its name, never its path."""
    if kind(name) is None and _HUB_ID.fullmatch(str(name)):
        return str(name)
    return Path(os.path.abspath(expanded(name))).name  # noqa: PTH100 - asks no file system


def _trusted(role: str, name: str) -> str:
    """A name out of a bundle, which is a stranger's word."""
    if not _HUB_ID.fullmatch(name):
        what = f"the bundle's {role.upper()} encoder is known by its folder's name only"
    elif kind(name) is not None:
        what = f"the bundle's {role.upper()} encoder is on the hub, but a folder here has that name"
    else:
        return name
    raise BaseModelError(
        what,
        where=name,
        advice=f"Give its folder or hub id, {role}= (--{role}), or go without: guidance=False "
        "(--no-guidance)",
    )


def locate(name: str | Path) -> Path | str:
    """A local encoder's folder, or an id.

    Raises:
        BaseModelError: Neither, or a folder without an encoder's safetensors.
    """
    where = str(name)
    if (found := kind(name)) is None:
        if isinstance(name, str) and _HUB_ID.fullmatch(name):
            return name
        raise BaseModelError(
            "no such folder", where=where,
            advice="Name the folder of an image encoder, or a hub id (user/model)",
        )  # fmt: skip
    folder = expanded(name)
    if found != "folder" or kind(folder / "config.json") != "file":
        what = "it has no config.json" if found == "folder" else "it is a file"
        raise BaseModelError(
            f"is not an image encoder as transformers saves it ({what})", where=where,
            advice="Name the folder that holds config.json and model.safetensors",
        )  # fmt: skip
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        raise BaseModelError(
            "has its weights as a pickle only, which can run code" if pickled else "has no weights",
            where=where,
            advice="Save or download it as model.safetensors",
        )
    return folder


def _check_whole(missing: Collection[str], where: str) -> None:
    """Refuse what transformers would make up at random; nobody asks a pooler."""
    if lacks := sorted(name for name in missing if not name.startswith("pooler.")):
        raise BaseModelError(
            f"lacks {len(lacks)} of its weights: {listed(lacks, 3)}",
            where=where,
            advice="Save or download the whole model again",
        )


def _check_kind(model: Any, clip: bool, where: str) -> int:  # noqa: ANN401 - any model
    """The side of the images that a model takes; refuses one whose first token is a patch."""
    size: Any = getattr(model.config, "image_size", None)
    patch: Any = getattr(model.config, "patch_size", None)
    fits = isinstance(size, int) and isinstance(patch, int)
    if fits and not clip:
        like = next(model.parameters())
        with torch.no_grad():
            x = torch.zeros(1, 3, size, size, dtype=like.dtype, device=like.device)
            tokens = model.eval()(pixel_values=x).last_hidden_state
        fits = tokens.ndim == 3 and tokens.shape[1] > (size // patch) ** 2
    if not fits:
        raise BaseModelError(
            f"{type(model).__name__} is not an image encoder with one embedding per image",
            where=where,
            advice="Name a CLIP model, or a ViT with a CLS token such as DINO",
        )
    return size


def _statistics(where: Path | str, clip: bool) -> Statistics:
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.utils import constants

    # A hub that does not answer must not change the embeddings, so only a folder gets defaults.
    if isinstance(where, Path) and not any(kind(where / name) for name in _PREPROCESSING):
        prefix = "OPENAI_CLIP" if clip else "IMAGENET_DEFAULT"
        return getattr(constants, f"{prefix}_MEAN"), getattr(constants, f"{prefix}_STD")
    told: dict[str, Any] = BaseImageProcessor.get_image_processor_dict(where)[0]
    if told.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    return told["image_mean"], told["image_std"]
