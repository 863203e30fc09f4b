"""Loading a base model as a diffusers pipeline."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ..errors import BaseModelError, listed
from ..place import expanded, kind
from .blame import blame
from .kind import check_kind
from .quiet import quiet

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX = "model_index.json"


def load(base: str | Path, *, device: torch.device, dtype: torch.dtype | None = None) -> Any:  # noqa: ANN401 - diffusers has no type for "any pipeline that can be called"
    """Load a text-to-image pipeline, ready to be called, without progress bars of its own.

    Args:
        base: Folder in diffusers format, or id on the Hugging Face hub.
        device: Where the pipeline goes.
        dtype: Of its weights; None is float32 on a CPU and bfloat16 elsewhere.

    Raises:
        BaseModelError: The folder does not exist or is not in diffusers format, the model lacks
            files, is damaged or not for text-to-image, or the hub cannot be reached.
    """
    where = folder(base) or str(base)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(where, Path):
        # A filter that paints images black belongs to a service, so nobody needs to have it.
        check_parts(where, *(index(where).keys() - {"safety_checker"}))
    with loading(base):
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        config: dict[str, Any] = DiffusionPipeline.load_config(where)  # pyright: ignore[reportAssignmentType] - a dict unless asked for more
        check_kind(config, str(base))
        checker = {"safety_checker": None} if "safety_checker" in config else {}
        pipe = DiffusionPipeline.from_pretrained(
            where, torch_dtype=dtype, use_safetensors=True, **checker
        )
        pipe.set_progress_bar_config(disable=True)
    with quiet():  # it warns of float16 on a CPU, which works
        return pipe.to(device)


def folder(base: str | Path) -> Path | None:
    """The folder of a local model; None for an id on the hub.

    Raises:
        BaseModelError: Neither a folder in diffusers format nor like an id.
    """
    found = kind(base)
    if found == "folder":
        if kind(expanded(base) / _INDEX) != "file":
            raise BaseModelError(
                f"is not a model in diffusers format (it has no {_INDEX})",
                where=str(base),
                advice="Name the folder that holds unet or transformer, vae and scheduler",
            )
        return expanded(base)
    if found == "file":
        raise BaseModelError(
            "is a file, not a model folder in diffusers format",
            where=str(base),
            advice="Name a folder, or convert the checkpoint with diffusers' from_single_file",
        )
    if isinstance(base, Path) or not _HUB_ID.fullmatch(base):
        raise BaseModelError(
            "no such folder", where=str(base), advice="Name a model folder or a hub id (user/model)"
        )
    return None


def index(path: Path) -> dict[str, tuple[str, str]]:
    """Components of a local model: name → (library, class).

    Raises:
        BaseModelError: The index cannot be read.
    """
    with loading(path):
        found = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        items = [(k, v) for k, v in found.items() if isinstance(v, list) and len(v) == 2]
        return {k: (v[0], v[1]) for k, v in items if k[0] != "_" and {*map(type, v)} == {str}}


def check_parts(path: Path, *names: str) -> None:
    """Refuse a local model without these folders; diffusers makes up empty tokenisers.

    Raises:
        BaseModelError: One is not there.
    """
    if missing := sorted(name for name in names if kind(path / name) != "folder"):
        raise BaseModelError(
            f"lacks the folder of its part {listed(missing)}",
            where=str(path),
            advice="Save or download the whole model again",
        )


def loading(base: str | Path) -> AbstractContextManager[None]:
    """What the libraries raise inside means that this base model cannot be loaded."""
    return blame(
        "cannot be loaded as a diffusers model",
        where=str(base),
        advice="The folder is damaged, incomplete or of another kind; save or download it again"
        if kind(base) == "folder"
        else "Check the name and the connection, or name a local folder in diffusers format",
    )
