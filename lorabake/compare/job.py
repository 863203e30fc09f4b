"""A request after it was checked: everything that can be, before a model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from .. import lora
from ..inputs import Inputs
from ..lora import Lora
from .baking import stamp
from .judges import Judges
from .pictures import digest
from .request import MARK, Request, Setup, claim
from .variants import Variant, variants


@dataclass(frozen=True)
class Job:
    """A request that has been checked.

    Attributes:
        request: What is asked for.
        setup: How.
        folder: Where everything goes.
        inputs: Prompts, seeds and options.
        loras: Content and style, as read.
    """

    request: Request
    setup: Setup
    folder: Path
    inputs: Inputs
    loras: tuple[Lora, Lora]

    def variants(self, judges: Judges | None = None) -> tuple[Variant, ...]:
        """What is compared, with what the methods are given.

        Raises:
            UserError: A name, parameter or value is unknown or out of range, or one is missing.
        """
        given = self.request.given()
        if judges is not None and {"clip", "dino"} <= judges.places.keys():
            given |= {role: judges.places[role] for role in ("clip", "dino")}
        else:
            given["guide"] = "off"  # there is nothing to guide latents by
        of = self.setup
        return variants(
            of.methods, of.presets, of.bundles, given=given, settings=of.settings, grid=of.grid
        )

    def key(self, judges: Judges) -> str:
        """Digest of everything that was asked for, and of the files that it was asked of."""
        request, setup = self.request, self.setup
        places = (request.base, request.content_images, request.style_images, *setup.bundles)
        return digest({
            "request": request.to_json(), "setup": asdict(setup),
            "loras": [x.provenance.sha256 for x in self.loras],
            "places": [stamp(x) for x in places if x], "left_out": judges.left_out,
            "encoders": {k: v.digest for k, v in judges.judges.items()},
            "version": version("lorabake"),
        })  # fmt: skip


def prepare(request: Request, setup: Setup, folder: Path) -> Job:
    """Check everything that can be checked before a model is loaded.

    Raises:
        UserError: Something that was given does not exist, does not fit, or is out of range.
    """
    inputs = setup.inputs(request.prompts)
    request.check()
    claim(folder, MARK)
    loras = lora.read_both(
        request.content, request.style, family=setup.family, svd_rank=setup.svd_rank
    )
    lora.common_family(*loras)
    job = Job(request, setup, folder, inputs, loras)
    job.variants()
    return job
