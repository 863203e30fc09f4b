"""Which half of classifier-free guidance a call computes: known from the pipeline, not guessed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .caller import Caller, callers
from .cfg import WAYS, Way, encodes_negative
from .errors import AttachError
from .part import ALL, NONE, Part, Share, batch
from .patch import Uncopyable

_ADVICE = 'Attach with half="both"'
_TEXT = "encoder_hidden_states"


def unguided(pipe: object, found: Way) -> str:
    """Why `conditional` changes nothing."""
    does = "ran without" if found.on else "has no"
    return (
        f"{type(pipe).__name__} {does} classifier-free guidance, so the LoRAs act as with "
        'half="both"'
    )


class Halves:
    """Tells the layers of a denoiser, before each call of it, which part of it is conditional.

    Args:
        pipe: The pipeline that the bundle is attached to.
        denoiser: One of its denoisers, out of any torch.compile wrapper.
        part: Of its layers.
        note: Called with why `conditional` changes nothing, where that is so.

    Attributes:
        cut: The part of a call that is cut in two; None while none is.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - any pipeline
        denoiser: nn.Module,
        part: Part,
        note: Callable[[str], None],
    ) -> None:
        self._pipe, self._denoiser, self._part, self._note = pipe, denoiser, part, note
        self.cut: Share | None = None
        self._guided = False
        self._names = list(inspect.signature(denoiser.forward).parameters)

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Before a call with these arguments.

        Raises:
            AttachError: It is not known which half it computes.
        """
        share = self.share(args, kwargs) if self.cut is None else self.cut
        self._part.put(share, *batch((*args, *kwargs.values())))

    def resumed(self) -> Callable[[], None]:
        """What puts the layers as they are for this call, later."""
        return self._part.resumed()

    def share(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Share:
        """The part of a call with these arguments that is conditional."""
        caller = next((c for c in callers(self._pipe, self._denoiser) if c.method in WAYS), None)
        if caller is None:
            raise AttachError(
                "the denoiser was called by nothing that says which half of guidance it computes",
                advice=f"Call the pipeline. {_ADVICE}",
            )
        found = WAYS[caller.method]
        if not found.on or not _said(caller, found.on):
            if not self._guided:  # it may end before the run does
                self._note(unguided(caller.pipe, found))
            return ALL
        self._guided = True
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        if not found.parts:
            return _separate(caller, given.get(_TEXT))
        if found.lists:
            return (0, 1, 2)
        return _together(caller, found.parts, given.get(self._names[0]), given.get(_TEXT))


def _said(caller: Caller, name: str) -> bool:
    """What a pipeline says of itself, in a variable or an attribute."""
    return bool(caller.values[name] if name in caller.values else getattr(caller.pipe, name))


def _separate(caller: Caller, text: object) -> Share:
    """Of a call for one half: it is that of the prompt that it is given."""
    positive = text is caller.values.get("prompt_embeds")
    negative = text is caller.values.get("negative_prompt_embeds")
    if positive == negative:
        raise AttachError(
            "the denoiser was given one tensor for prompt and negative prompt"
            if positive
            else f"{caller.method} gave the denoiser neither prompt_embeds nor "
            "negative_prompt_embeds",
            where="half",
            advice=f"Pass a copy as negative_prompt_embeds. {_ADVICE}" if positive else _ADVICE,
        )
    return ALL if positive else NONE


def _together(caller: Caller, parts: str, sample: object, text: object) -> Share:
    """Of a call for all parts: those of the prompt."""
    if parts == "ucp" and not _said(caller, "do_perturbed_attention_guidance"):
        parts = "uc"
    latents = caller.values.get("latents")
    if isinstance(latents, Tensor) and isinstance(sample, Tensor):
        if text is not None and text is caller.values.get("original_prompt_embeds"):
            return ALL  # skip-layer guidance (StableDiffusion 3): the prompt once more
        if len(sample) != len(parts) * len(latents):
            raise AttachError(
                f"{caller.method} called the denoiser with {len(sample)} samples for "
                f"{len(latents)} images, where {len(parts)} of each are expected",
                where="half",
                advice=_ADVICE,
            )
    mine = [i for i, letter in enumerate(parts) if letter in "cp"]
    return (mine[0], mine[-1] + 1, len(parts))


class Encoding(Uncopyable):
    """Tells the layers of a text encoder, before each call, which prompt it encodes.

    Args:
        pipe: The pipeline that the bundle is attached to.
        name: Of the text encoder in it.
        root: The same, out of any torch.compile wrapper.
        part: Of its layers.
    """

    def __init__(self, pipe: Any, name: str, root: nn.Module, part: Part) -> None:  # noqa: ANN401 - any pipeline
        self._pipe, self._name, self._root, self._part = pipe, name, root, part
        self._handle = getattr(pipe, name).register_forward_pre_hook(
            self._before,  # pyright: ignore[reportAttributeAccessIssue] - the decorator is typed loosely
            prepend=True,
            with_kwargs=True,
        )

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    @torch.compiler.disable
    @torch.inference_mode(False)
    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        running = callers(self._pipe, self._root)
        said = (encodes_negative(caller.method, caller.values) for caller in running)
        negative = next((one for one in said if one is not None), None)
        if negative is None:
            raise AttachError(
                f"{self._name} was called by nothing that says whether it encodes the prompt or "
                "the negative prompt",
                where="half",
                advice=f"Let the pipeline encode both. {_ADVICE}",
            )
        self._part.put(NONE if negative else ALL, *batch((*args, *kwargs.values())))
