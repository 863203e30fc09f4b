"""Whether prompts have the words that LoRAs listen to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..errors import shortened
from ..lora import Lora

_ORDINARY = {
    "a", "an", "and", "art", "by", "drawing", "image", "in", "of", "on", "painting", "photo",
    "picture", "rendering", "style", "the", "with",
}  # fmt: skip
"""Words of training texts that tell no LoRA from another."""


def without_trigger(loras: Sequence[Lora], prompts: Sequence[str]) -> Iterator[str]:
    """A sentence for each prompt that has none of the trigger words of a LoRA that names some.

    A phrase counts as there where all its words are, but for the most ordinary ones.
    """
    for role, one in zip(("content", "style"), loras, strict=True):
        words = one.provenance.trigger_words
        for prompt in prompts:
            if words and not any(_there(phrase, prompt) for phrase in words):
                yield (
                    f'the prompt "{shortened(prompt, 100)}" has no trigger word of the {role} LoRA '
                    f"({shortened(', '.join(words), 100)})"
                )


def _there(phrase: str, prompt: str) -> bool:
    said = _words(prompt)
    return phrase.casefold() in prompt.casefold() or not (_words(phrase) - _ORDINARY) - said


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))
