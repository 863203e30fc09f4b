"""The pictures of one pair: a column for each way, and the LoRAs' own references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import AttachError
from .baking import Tell
from .comparison import References
from .job import Job
from .pictures import Picture
from .rendering import Renderer
from .triggers import without_trigger
from .ways import Way

REFERENCES, REFERENCE_SEED = 4, 1_000_000
"""Images that a LoRA paints of itself, with seeds that no picture has."""
_ROLES = ("content", "style")


@dataclass(frozen=True)
class Column:
    """A way, and its pictures with why each shows nothing, in the order of prompts and seeds."""

    way: Way
    pictures: tuple[Picture, ...]
    failures: tuple[str, ...]


class PairPictures:
    """Paints one pair's pictures."""

    def __init__(self, job: Job, renderer: Renderer, tell: Tell, ways: int) -> None:
        self._job, self._renderer, self._tell = job, renderer, tell
        self._done, self._total = 0, ways * job.inputs.count
        self._notes: list[str] = []
        self.painted = 0

    def column(self, way: Way, name: str) -> Column:
        """Paint one way's pictures; one that cannot run here has none."""
        folder = self._job.folder / "images" / name
        wanted = tuple(
            self._wanted(way, folder / f"p{i + 1}-s{seed}.png", prompt, seed)
            for i, prompt in enumerate(self._job.inputs.prompts)
            for seed in self._job.inputs.each_seed
        )
        if not way.reason:
            try:
                return Column(way, wanted, self._paint(way, wanted))
            except AttachError as error:
                way = replace(way, reason=str(error))
        self._progress(len(wanted))
        return Column(way, wanted, (way.reason,) * len(wanted))

    def references(self, which: int, alone: Way) -> References:
        """The images of a LoRA: those that were given, or what it paints by itself."""
        request, source = self._job.request, self._job.loras[which].provenance
        images = (request.content_images, request.style_images)[which]
        if images is not None:
            return References((images,), None, source.name, source.sha256)
        prompt = self._own_prompt(which)
        folder = self._job.folder / "references" / _ROLES[which]
        wanted = [
            self._wanted(alone, folder / f"s{seed}.png", prompt, seed)
            for seed in range(REFERENCE_SEED, REFERENCE_SEED + REFERENCES)
        ]
        self._total += len(wanted)
        failures = self._paint(alone, wanted)
        good = [x for x, failure in zip(wanted, failures, strict=True) if not failure]
        if len(good) < len(wanted):
            self._notes.append(f"{len(wanted) - len(good)} {_ROLES[which]} references show nothing")
        paths = tuple(x.path.relative_to(self._job.folder).as_posix() for x in good)
        return References(paths, prompt, source.name, source.sha256)

    def warnings(self) -> tuple[str, ...]:
        """What the user should know about prompts and references."""
        missing = without_trigger(self._job.loras, self._job.inputs.prompts)
        return (*missing, *self._notes)

    def _wanted(self, way: Way, path: Path, prompt: str, seed: int) -> Picture:
        return Picture(path, prompt, seed, {**self._renderer.settings, **way.settings})

    def _paint(self, way: Way, wanted: Sequence[Picture]) -> tuple[str, ...]:
        before = self._renderer.painted
        found = self._renderer.paint(
            wanted, way.attach, alone=way.alone, shared=way.shared, done=self._progress
        )
        self.painted += self._renderer.painted - before
        return tuple(found)

    def _progress(self, count: int) -> None:
        self._done += count
        self._tell("rendering", self._done, self._total)

    def _own_prompt(self, which: int) -> str:
        """What a LoRA was trained with, as far as that is known."""
        request, role = self._job.request, _ROLES[which]
        if told := (request.content_prompt, request.style_prompt)[which]:
            return told
        if words := self._job.loras[which].provenance.trigger_words:
            return ", ".join(words[:3])
        self._notes.append(
            f"nobody says what the {role} LoRA was trained with, so its references are painted of "
            f"the first prompt: give --{role}-prompt or --{role}-images"
        )
        return self._job.inputs.prompts[0]
