"""What is asked for: two LoRAs and their prompts, and how everything is compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..inputs import Inputs
from ..pipelines import pictures
from ..place import kind

MARK = "command.txt"
"""The file by which a folder is known as a comparison's."""


@dataclass(frozen=True)
class Setup:
    """How LoRAs are compared; the same for every pair of an evaluation.

    Attributes:
        methods: `klora`, or `klora:alpha=1.4,beta=0.3`, which may be parameters of the method or
            of load time. Without methods, presets and bundles: every method that needs nothing
            more than what is given.
        presets: Presets by name or `.toml` file, likewise with parameters.
        bundles: Bundles that are there already, likewise with load-time parameters.
        settings: `key=value`, for each variant that has such a parameter.
        grid: `key=v1,v2,…`: each variant that has such a parameter, once for each value; several
            of these multiply.
        seeds: Pictures of each prompt by each variant.
        first_seed: The first one's seed; the next has the next.
        steps: Denoising steps.
        guidance: Classifier-free guidance; None is the pipeline's own.
        width: Of the pictures, in pixels; None, with `height`, is the pipeline's own.
        height: Likewise.
        clip: Folder or hub id of the CLIP encoder; None for ViT-B/32, or the shipped one on the
            shipped model.
        dino: Likewise of DINO; ViT-S/16.
        csd: Likewise of the style descriptor CSD; ViT-L/14.
        device: Where to compute.
        dtype: Of the base model's weights: `float32`, `bfloat16`, `float16`; None is float32 on a
            CPU and bfloat16 elsewhere.
        family: Of the base model, see `make`.
        svd_rank: See `make`.
    """

    methods: Sequence[str] = ()
    presets: Sequence[str] = ()
    bundles: Sequence[str] = ()
    settings: Sequence[str] = ()
    grid: Sequence[str] = ()
    seeds: int = 8
    first_seed: int = 0
    steps: int = 25
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    clip: str | None = None
    dino: str | None = None
    csd: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    family: str | None = None
    svd_rank: int | None = None

    def inputs(self, prompts: Iterable[str]) -> Inputs:
        """Prompts, seeds and options, checked.

        Raises:
            RecipeError: One is of the wrong type or out of range.
        """
        return Inputs(
            tuple(prompts), self.seeds, self.first_seed, self.steps, None, self.guidance,
            self.width, self.height,
        )  # fmt: skip

    def encoders(self) -> dict[str, str | None]:
        """Names of the encoders, by their roles."""
        return {"clip": self.clip, "dino": self.dino, "csd": self.csd}

    def arguments(self) -> list[str]:
        """As the command line has them."""
        found: list[str] = []
        for field in fields(self):
            value, option = getattr(self, field.name), _OPTIONS.get(field.name, field.name)
            values = value if isinstance(value, tuple | list) else [value]
            # What decides about pictures is told also where it is the default.
            told = value != field.default or field.name in ("seeds", "steps")
            for one in values if told else ():
                found += [f"--{option.replace('_', '-')}", str(one)]
        return found


_OPTIONS = {
    "methods": "method", "presets": "preset", "bundles": "bundle", "settings": "set",
    "first_seed": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One pair of LoRAs and what is painted with them.

    Attributes:
        content: File, folder or hub id of the LoRA of the subject.
        style: Likewise of the style.
        base: Base model.
        prompts: What is painted.
        content_prompt: What the content LoRA was trained with; it paints the subject images of it
            where there are none.
        style_prompt: Likewise of the style LoRA.
        content_images: Folder of images of the subject, or one image.
        style_images: Likewise of the style.
    """

    content: str
    style: str
    base: str
    prompts: tuple[str, ...]
    content_prompt: str | None = None
    style_prompt: str | None = None
    content_images: str | None = None
    style_images: str | None = None

    def check(self) -> None:
        """Refuse reference images that cannot be read, before anything large is loaded.

        Raises:
            ImageError: There is no such folder or file, it has no images, or some are damaged.
        """
        for place in (self.content_images, self.style_images):
            if place is not None:
                pictures.read(place, 1)

    def given(self) -> dict[str, str]:
        """What methods may need, by the names of their parameters."""
        names = ("content_prompt", "style_prompt", "content_images", "style_images")
        return {name: value for name in names if (value := getattr(self, name))}

    def command(self, setup: Setup, output: str) -> str:
        """The command line that makes the same comparison again."""
        words = ["lorabake", "compare", self.content, self.style, "--base", self.base]
        for prompt in self.prompts:
            words += ["--prompt", prompt]
        for name, value in self.given().items():
            words += [f"--{name.replace('_', '-')}", value]
        return shlex.join([*words, *setup.arguments(), "-o", output])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"prompts": list(self.prompts)}


def claim(folder: str | Path, mark: str) -> Path:
    """Refuse a folder that holds anything but what an earlier run has left there.

    Raises:
        OutputError: It is a file, cannot be read, or is somebody else's.
    """
    path = Path(folder)
    if (found := kind(path)) not in (None, "folder"):
        raise OutputError("is a file", where=str(folder), advice="Name a folder")
    try:
        strange = found and any(path.iterdir()) and kind(path / mark) is None
    except OSError as error:
        raise OutputError(f"cannot be read ({error.strerror})", where=str(folder)) from error
    if strange:
        raise OutputError(
            "is not empty, and not the folder of an earlier run", where=str(folder),
            advice="Name a new folder, or that of the run that you want to go on with",
        )  # fmt: skip
    return path


def slug(label: str) -> str:
    """A label as a file name."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", label).strip("-.")[:80] or "x"


def slugs(labels: Sequence[str]) -> list[str]:
    """Labels as file names, no two alike."""
    found: list[str] = []
    for label in labels:
        name, number = slug(label), 2
        while name.lower() in (x.lower() for x in found):
            name, number = f"{slug(label)}-{number}", number + 1
        found.append(name)
    return found
