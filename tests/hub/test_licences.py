"""Which licence is the stricter, however it is spelt."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCardData

from lorabake.bundle.licences import Terms, of, stricter

SPELT = {
    "CreativeML OpenRAIL-M": "creativeml-openrail-m",
    "CreativeML Open RAIL++-M License": "openrail++",
    "OpenRAIL++": "openrail++",
    "Apache 2.0": "apache-2.0",
    "Apache License, Version 2.0": "apache-2.0",
    "The MIT Licence": "mit",
    "GNU General Public License v3.0": "gpl-3.0",
    "LGPLv2.1": "lgpl-2.1",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International": "cc-by-nc-sa-4.0",
    "https://creativecommons.org/licenses/by-nd/4.0/deed.en": "cc-by-nd-4.0",
    "https://creativecommons.org/publicdomain/zero/1.0/": "cc0-1.0",
    "CC0": "cc0-1.0",
    "FLUX.1 [dev] Non-Commercial License": "flux-1-dev-non-commercial-license",
    "Stability AI Community License": "stabilityai-ai-community",
    "Fair AI Public License 1.0-SD": "faipl-1.0-sd",
}
LAX_TO_STRICT = [
    "unlicense", "mit", "apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0",
    "creativeml-openrail-m", "stabilityai-ai-community", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
    "flux-1-dev-non-commercial-license", "cc-by-nd-4.0", "my own", None,
]  # fmt: skip


@pytest.mark.parametrize("text", SPELT)
def test_spelling_does_not_matter(text: str) -> None:
    assert of(text).name == SPELT[text]
    assert of(text.upper()) == of(SPELT[text]) == of(text)


def test_the_stricter_of_every_two() -> None:
    for i, lax in enumerate(LAX_TO_STRICT):
        for strict in LAX_TO_STRICT[i:]:
            for pair in ((lax, strict), (strict, lax)):
                found, _ = stricter(dict(zip(("content", "style"), pair, strict=True)))
                assert found == of(strict), pair


@pytest.mark.parametrize(
    ("content", "style", "words"),
    [
        ("mit", "apache-2.0", []),
        ("mit", "cc-by-sa-4.0", []),
        ("gpl-3.0", "GPL v3", []),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", ["cc-by-sa-4.0 asks that a merge has the same licence"]),
        ("gpl-3.0", "cc-by-sa-4.0", ["cc-by-sa-4.0 asks"]),
        ("cc-by-nd-4.0", "mit", ["the content LoRA's licence, cc-by-nd-4.0, does not allow"]),
        ("mit", None, ["the style LoRA states no licence"]),
        ("none", "Unknown", ["the content LoRA states no", "the style LoRA states no"]),
        ("free for cats", "mit", ["free-for-cats, is not one that lorabake knows"]),
    ],
)
def test_what_somebody_should_know(content: str, style: str | None, words: list[str]) -> None:
    _, told = stricter({"content": content, "style": style})
    assert len(told) == len(words)
    assert all(word in text for word, text in zip(words, told, strict=True))


def test_unknown_ones_are_named_both() -> None:
    found, told = stricter({"content": "free for cats", "style": "of ink"})
    assert (found.name, found.listed) == ("free-for-cats-and-of-ink", False)
    assert len(told) == 2
    assert stricter({"content": "of ink", "style": "Of Ink"})[0].name == "of-ink"
    assert stricter({"content": "of ink", "style": "mit"})[0].name == "of-ink"


@pytest.mark.parametrize("text", ["🎨", "x" * 500, "a: b\n- c", "null", "--", "Çok özel"])
def test_any_text_is_a_licence(text: str) -> None:
    found = of(text)
    assert found.terms is Terms.UNKNOWN
    assert not found.listed
    assert 0 < len(found.name) <= 60
    written = ModelCardData(license_name=found.name).to_yaml()
    assert yaml.safe_load(written) == {"license_name": found.name}
