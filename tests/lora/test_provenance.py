from __future__ import annotations

import json

import pytest

from lorabake.lora.provenance import provenance


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, ()),
        ({"modelspec.trigger_phrase": "a sks cat"}, ("a sks cat",)),
        ({"instance_prompt": "sks, cat , sks"}, ("sks", "cat")),
        ({"trigger_words": '["sks cat", "fur"]'}, ("sks cat", "fur")),
        (
            {"ss_tag_frequency": json.dumps({"10_a": {"tree": 3, "sks": 9}, "5_b": {"sks": 2}})},
            ("sks",),
        ),
        ({"trigger_words": "[" * 100_000 + "]" * 100_000}, ()),
        ({"ss_tag_frequency": "null"}, ()),
        ({"ss_tag_frequency": '{"a": {}, "b": 3}'}, ()),
        ({"ss_tag_frequency": "{"}, ()),
        ({"ss_tag_frequency": '{"a":' * 50_000 + "1" + "}" * 50_000}, ()),
        ({"ss_tag_frequency": f'{{"a": {{"sks": 1{"0" * 5000}}}}}'}, ()),
        ({"ss_tag_frequency": '{"a": {"\\ud800": 1}}'}, ()),
        ({"ss_tag_frequency": '{"a": {"sks": 1, "fur": "x"}}'}, ()),
    ],
)
def test_trigger_words(metadata: dict[str, str], words: tuple[str, ...]) -> None:
    assert provenance(metadata, "cat", "0").trigger_words == words


def test_base_model_and_license() -> None:
    found = provenance({"ss_sd_model_name": "v1-5.safetensors", "license": " mit "}, "cat", "0")
    assert (found.base_model, found.license) == ("v1-5.safetensors", "mit")
    found = provenance({"base_model": "user/base", "ss_sd_model_name": "x"}, "cat", "0")
    assert (found.base_model, found.license) == ("user/base", None)
