"""The table of pipelines against the source of the diffusers that is installed."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import diffusers
import pytest

from lorabake.runtime.cfg import WAYS, encodes_negative

FOLDER = Path(diffusers.__file__).parent / "pipelines"
TEXTS = ("AnimateDiff", "Flux", "StableDiffusion")
"""Kinds of pipelines whose LoRAs may have layers of a text encoder."""


@cache
def methods() -> dict[str, str]:
    """Source of the methods of all pipelines, by qualified name."""
    found: dict[str, str] = {}
    for path in FOLDER.rglob("pipeline_*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(name.removesuffix(".__call__") in text for name in WAYS):
            continue
        lines = text.splitlines()
        for kind in ast.parse(text).body:
            if isinstance(kind, ast.ClassDef):
                for one in kind.body:
                    if isinstance(one, ast.FunctionDef):
                        source = lines[one.lineno - 1 : one.end_lineno]
                        found[f"{kind.name}.{one.name}"] = "\n".join(source)
    return found


def has(text: str, pattern: str) -> bool:
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("name", WAYS)
def test_the_source_says_so(name: str) -> None:
    way, text = WAYS[name], methods()[name]
    own = text + "".join(v for k, v in methods().items() if k.startswith(name.partition(".")[0]))
    together = has(text, r"torch\.cat\(\[(latents|image_latents)\] \* [23]|\.repeat\(2, 1, 1, 1\)")
    if not way.on:
        assert not together
        assert not has(text, r"\.chunk\([23]\)|=negative_prompt_embeds")
        return
    assert has(own, rf"def {way.on}\(|{way.on} = ")
    if not way.parts:
        given = re.findall(r"encoder_hidden_states=(\w+),", text)
        assert {*given} == {"prompt_embeds", "negative_prompt_embeds"}
        assert given[-1] == "negative_prompt_embeds"
        assert not together
        assert not has(text, r"\.chunk\([23]\)")
    elif way.lists:
        assert together
        assert "prompt_embeds_model_input = prompt_embeds + negative_prompt_embeds" in text
    elif way.parts == "ucp":
        order = r"\(\s*prompt_embeds, negative_prompt_embeds, self\.do_classifier_free_guidance"
        assert has(text, r"_prepare_perturbed_attention_guidance" + order)
        assert "self.do_perturbed_attention_guidance" in text
    elif way.parts == "ciu":
        order = r"\[prompt_embeds, negative_prompt_embeds, negative_prompt_embeds\]"
        assert has(own, r"torch\.cat\(" + order)
        assert has(text, r"noise_pred_text, noise_pred_image, noise_pred_uncond = .*chunk\(3\)")
    else:
        assert together
        assert has(text, r"torch\.cat\(\s*\[negative_prompt_embeds, prompt_embeds\]")
        assert has(text, r"noise_pred_uncond, noise_pred_text = noise_pred\.chunk\(2\)")


@pytest.mark.parametrize("name", [name for name in WAYS if name.startswith(TEXTS)])
def test_prompts_are_told_apart(name: str) -> None:
    """The negative prompt is encoded second, and what tells so is there by then and not before."""
    kind = name.partition(".")[0]
    if kind.startswith("Flux"):
        text = methods()[name]
        if WAYS[name].on == "do_true_cfg":
            first, second = re.findall(r"(\w+),\s*\) = self\.encode_prompt\(", text)
            assert first == "text_ids"
            assert second in ("negative_text_ids", "_")
            assert len(re.findall(r"\btext_ids\b", text.split(") = self.encode_prompt(")[0])) == 1
        return
    named = (
        "_encode_prompt" if kind == "StableDiffusionInstructPix2PixPipeline" else "encode_prompt"
    )
    text = methods()[f"{kind}.{named}"]
    if kind.startswith("StableDiffusion3"):
        first, second = text.split("if do_classifier_free_guidance and negative_prompt_embeds is")
        assert has(first, r"if prompt_embeds is None:")
        assert not has(second, r"[^_]prompt_embeds =")
        return
    before, after = text.split("uncond_input =", 1)
    assert "prompt_embeds = " in before
    assert not has(after.split("negative_prompt_embeds = ")[0], r"[^_]prompt_embeds = ")


def test_other_methods_tell_nothing() -> None:
    assert encodes_negative("WanPipeline.encode_prompt", {"uncond_input": 1}) is None
    assert encodes_negative("FluxPipeline.encode_prompt", {}) is None
