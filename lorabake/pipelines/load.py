"""Loading a base model as a diffusers pipeline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import BaseModelError
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
            files, or the hub cannot be reached.
    """
    where = folder(base) or str(base)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with quiet():
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        try:
            config: dict[str, Any] = DiffusionPipeline.load_config(where)  # pyright: ignore[reportAssignmentType] - a dict unless asked for more
            # A filter that paints images black belongs to a service, not to a comparison.
            checker = {"safety_checker": None} if "safety_checker" in config else {}
            pipe = DiffusionPipeline.from_pretrained(
                where, torch_dtype=dtype, use_safetensors=True, **checker
            )
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise refused(base, error) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def folder(base: str | Path) -> Path | None:
    """The folder of a local model; None for an id on the hub.

    Raises:
        BaseModelError: Neither a folder in diffusers format nor like an id.
    """
    path = Path(base)
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise BaseModelError(
                f"is not a model in diffusers format (it has no {_INDEX})",
                where=str(base),
                advice="Name the folder that holds unet or transformer, vae and scheduler",
            )
        return path
    if path.is_file():
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
    try:
        found = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        items = [(k, v) for k, v in found.items() if isinstance(v, list) and len(v) == 2 and v[0]]
    except (OSError, ValueError, AttributeError) as error:
        raise refused(path, error) from error
    return {name: (str(library), str(kind)) for name, (library, kind) in items}


def refused(base: str | Path, error: Exception) -> BaseModelError:
    """The error for a model that its library does not load."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return BaseModelError(
        f"cannot be loaded ({reason.rstrip('.') or type(error).__name__})",
        where=str(base),
        advice="Check the name and the connection, or name a local folder in diffusers format",
    )
