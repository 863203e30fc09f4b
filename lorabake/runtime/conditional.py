"""What a replay has more where the LoRAs act in the conditional half of guidance alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .bundle import Bundle
from .cfg import Way, way
from .cut import Cut
from .errors import AttachError
from .fused import Keep
from .halves import Encoding, Halves, unguided
from .manifest import DENOISERS
from .part import Part


class Conditional:
    """Tells each component's layers which samples of a call are conditional.

    Args:
        pipe: A pipeline of diffusers.
        way: How it guides.
        roots: Its components that have layers of the bundle, out of any torch.compile wrapper.
        note: Called with why nothing changes, where that is so.

    Attributes:
        parts: By component.
        halves: By denoiser.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - any pipeline
        way: Way,
        roots: Mapping[str, nn.Module],
        note: Callable[[str], None],
    ) -> None:
        self._pipe, self._way, self._roots = pipe, way, dict(roots)
        self.parts = {n: Part(separate=n not in DENOISERS or way.separate) for n in roots}
        self.halves = {
            name: Halves(pipe, root, self.parts[name], note)
            for name, root in roots.items()
            if name in DENOISERS
        }
        self._hooks: list[Cut | Encoding] = []

    def barred(self, keep: Keep) -> dict[str, str]:
        """By component, why its layers cannot be fused, where there is a reason."""
        if keep == "cpu":
            return dict.fromkeys(self.parts, "the other half needs weights kept on the CPU")
        return {
            name: "both halves of guidance come in one call"
            for name, part in self.parts.items()
            if not part.separate
        }

    def listen(self) -> None:
        """Hook into text encoders, and into denoisers that get lists; after all other hooks."""
        for name, root in self._roots.items():
            if name not in DENOISERS:
                self._hooks.append(Encoding(self._pipe, name, root, self.parts[name]))
            elif self._way.lists:
                self._hooks.append(Cut(getattr(self._pipe, name), self.halves[name]))

    def remove(self) -> None:
        """Take the hooks off."""
        while self._hooks:
            self._hooks.pop().remove()


def conditional(
    bundle: Bundle,
    pipe: Any,  # noqa: ANN401 - any pipeline
    roots: Mapping[str, nn.Module],
    note: Callable[[str], None],
) -> Conditional | None:
    """What `half="conditional"` needs in a pipeline; None where that changes nothing.

    Raises:
        AttachError: The pipeline does not say which half is which.
    """
    if (found := way(pipe)) is None:
        raise AttachError(
            f"{type(pipe).__name__} is not known to say which half of guidance is which",
            where=str(bundle.path),
            advice='Attach with half="both", which needs no such thing',
        )
    if not found.on:
        note(unguided(pipe, found))
        return None
    wanted = {layer.component for layer in bundle.manifest.layers}
    return Conditional(pipe, found, {n: r for n, r in roots.items() if n in wanted}, note)
