"""What plain LoRA files say about themselves to other tools."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...lora.families import Family
from ...lora.types import LayerName
from ...runtime import Bundle
from ...runtime.manifest import Manifest
from ..modelspec import modelspec
from .report import Part
from .styles import peft_module
from .wanted import Wanted


def metadata(
    manifest: Manifest, family: Family, wanted: Wanted, rank: int, what: str
) -> dict[str, str]:
    """The `__metadata__` of a file; no manifest, for it is no bundle.

    Args:
        manifest: Of the bundle.
        family: Of its base model.
        wanted: What was asked for.
        rank: Of the denoiser's layers.
        what: The sentence about it.
    """
    own = tuple(s for s in manifest.sources if wanted.only in (None, s.role))
    found = modelspec(replace(manifest, sources=own), family.architecture, rank)
    found["modelspec.description"] = what
    if wanted.only is not None:
        found["modelspec.title"] = own[0].name
        del found["modelspec.merged_from"]
    if wanted.to == "kohya":
        found |= {"ss_network_alpha": str(rank), "ss_network_module": "networks.lora"}
    return found


def configuration(
    manifest: Manifest, family: Family, names: Iterable[LayerName], rank: int
) -> dict[str, Any]:
    """PEFT's `adapter_config.json` of one component.

    The target is one regular expression of whole paths: a list of them would also mean the modules
    whose path ends in one of them.
    """
    modules = sorted(re.escape(peft_module(family, name)) for name in names)
    return {
        "base_model_name_or_path": manifest.base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": "|".join(modules),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def sentence(manifest: Manifest, wanted: Wanted, start: float, end: float, *, static: bool) -> str:
    """What a file is and what was lost, for people.

    Args:
        manifest: Of the bundle.
        wanted: What was asked for.
        start: Progress from which on it stands for the plan.
        end: Progress up to which it does.
        static: Whether the plan does not change meanwhile.
    """
    if wanted.only is not None:
        text = f"The {wanted.only} LoRA of a bundle of two, exported by lorabake."
    elif wanted.at is not None:
        text = f"Two LoRAs as one, exported by lorabake: the plan ({manifest.method}) at {start:g}."
    elif static:
        text = f"Two LoRAs as one ({manifest.method}), exported by lorabake."
    else:
        text = (
            "A static approximation, exported by lorabake: the time-average of a plan "
            f"({manifest.method}) that chooses between two LoRAs over time."
        )
    if wanted.timeline is not None:
        text += f" For the part of the run from {start:.4g} to {end:.4g} only."
    if wanted.rank is not None:
        text += f" Compressed to rank {wanted.rank} by SVD."
    return text


def schedule(bundle: Bundle, parts: Iterable[Part]) -> dict[str, Any]:
    """The sidecar of a timeline: when which files are to be used.

    `start` and `end` are progress by steps, as the plan has it. `start_percent` and `end_percent`
    are the same for ComfyUI's nodes.
    """
    rows = [
        {
            "files": [Path(file).name for file in part.files],
            "start": part.start,
            "end": part.end,
            "start_percent": percent(part.start),
            "end_percent": percent(part.end),
            "plan_error": part.plan_error,
            "rank_error": part.rank_error,
        }
        for part in parts
    ]
    return {"bundle": bundle.path.name, "method": bundle.manifest.method, "parts": rows}


def percent(progress: float) -> float:
    """Progress as ComfyUI's nodes take it: in thousandths, and one of them early.

    So the step that lies on a boundary, but for rounding, falls behind it.
    """
    return progress if progress in (0, 1) else max(0, int(progress * 1000 + 1e-6) - 1) / 1000
