"""What came out of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .scores import MEANINGS, TITLES
from .statistics import LEVEL, RESAMPLES, SEED, Mean
from .variants import DIRECT
from .verdict import Verdict

SHOWN = tuple(TITLES)
"""Scores in the order of the tables."""


@dataclass(frozen=True)
class Picture:
    """One picture and its scores.

    Attributes:
        path: Relative to the folder of the comparison.
        prompt: Number of its prompt.
        seed: Of its noise.
        failure: Why it shows nothing; empty if it is good. All scores are 0 then.
        scores: By name.
    """

    path: str
    prompt: int
    seed: int
    failure: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One variant or anchor.

    Attributes:
        label: What it is called.
        anchor: Whether it is painted beside the variants always.
        method: Its method; None for base, content only and style only.
        parameters: What was given for it, at bake and at load time.
        bundle: Its file, relative to the folder of the comparison or as given; None for none.
        digest: Of the bundle's tensors; empty for none.
        reason: Why it cannot be painted; empty if it can.
        pictures: In the order of prompts and seeds.
        means: Mean of each score over its pictures.
        differences: Mean of the paired differences to the direct merge.
    """

    label: str
    anchor: bool
    method: str | None
    parameters: Mapping[str, Any]
    bundle: str | None
    digest: str
    reason: str
    pictures: tuple[Picture, ...]
    means: Mapping[str, Mean]
    differences: Mapping[str, Mean]

    @property
    def failures(self) -> int:
        """How many of its pictures show nothing."""
        return sum(bool(x.failure) for x in self.pictures)


@dataclass(frozen=True)
class References:
    """The images of one LoRA that pictures are compared with.

    Attributes:
        images: Relative to the folder of the comparison if they were painted, else as given.
        prompt: What the LoRA painted them of; None if they were given.
        name: The LoRA's.
        sha256: Its digest.
    """

    images: tuple[str, ...]
    prompt: str | None
    name: str
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """What was compared, and which variant is recommended.

    Attributes:
        output: Folder of everything that was written.
        base: The base model's name.
        prompts: What was painted.
        seeds: Of each prompt.
        rows: The anchors, then the variants.
        verdict: The recommendation.
        subject: Images of the subject.
        style: Images of the style.
        encoders: Name and digest of each encoder.
        left_out: Why a score is missing, by the scores' names.
        warnings: What the user should know, a sentence each.
        command: What makes the same comparison again.
        key: Digest of everything that was asked for.
        painted: How many pictures were painted by this call; the others were there.
    """

    output: str
    base: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    verdict: Verdict
    subject: References
    style: References
    encoders: Mapping[str, Mapping[str, str]]
    left_out: Mapping[str, str]
    warnings: tuple[str, ...]
    command: str
    key: str
    painted: int = 0

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the scores that there are, in the order of the tables."""
        return tuple(name for name in SHOWN if name in self.rows[0].means)

    def row(self, label: str) -> Row:
        """The row of this label.

        Raises:
            KeyError: There is none.
        """
        return {row.label: row for row in self.rows}[label]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; without what differs when the same is done twice."""
        value = asdict(self)
        del value["painted"], value["output"]
        for row, own in zip(value["rows"], self.rows, strict=True):
            row["failures"] = own.failures
        about = {"level_percent": LEVEL, "resamples": RESAMPLES, "seed": SEED,
                 "paired_by": "prompt and seed", "differences_to": DIRECT}  # fmt: skip
        told = {name: MEANINGS[name] for name in self.rows[0].pictures[0].scores}
        return value | {"bootstrap": about, "scores": told}

    def __str__(self) -> str:
        from .tables import text

        return text(self)
