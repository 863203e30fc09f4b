"""The text of a model card: valid for any words, and true for every method."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import lorabake
from lorabake.bundle import card, facts, licences
from lorabake.bundle.card import Card
from lorabake.bundle.howto import exact
from lorabake.bundle.markdown import code
from lorabake.runtime.manifest import Manifest
from lorabake.runtime.plan import Constant, Live

from .. import tiny
from ..loaders.rules import APPS, Rules
from ..oracle import write_lora
from ..runtime import guided
from .conftest import BASE
from .server import Hub

REPO = "user/cat-ink"
HOSTILE = (
    "it's \"x\": y", "a\n---\nb", "🐱 кот", "#no", "- x", "{a: [b", "null", "`co``de`", "a | *b*",
    "\x00\x1b[31mred", "<script>", "[x](http://y)", "\u2028", "%&@!", "'", "x" * 900, "\ud800",
    "$1$",
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return lorabake.load(bundle).manifest


def told(manifest: Manifest, word: str, **changes: str | None) -> Manifest:
    """The same, with other words of both sources."""
    sources = [replace(s, trigger_words=(word,), **changes) for s in manifest.sources]  # pyright: ignore[reportArgumentType]
    return replace(manifest, sources=tuple(sources))


def page(
    manifest: Manifest, pictures: int = 0, licence: str = "mit",
    share: dict[str, float] | None = None,
) -> ModelCard:  # fmt: skip
    prompt, _ = facts.instance_prompt(manifest)
    base, _ = facts.base_model(manifest)
    shown = [(f"images/{i}.png", prompt or "") for i in range(pictures)]
    said = Card(REPO, base, licences.of(licence), False, prompt, shown, share, ["a remark"])
    text = card.text(manifest, said)
    assert card.is_ours(text)
    assert not card.is_ours(text.replace("## Sources", "## From"))
    return ModelCard(text)


@pytest.mark.parametrize("word", HOSTILE)
def test_any_words(word: str, manifest: Manifest) -> None:
    found = page(told(manifest, word, name=word, license=word), pictures=1, licence=word)
    clean = " ".join("".join(c if c.isprintable() else " " for c in word).split())
    data: dict[str, Any] = found.data.to_dict()
    prompt = f"{clean} in {clean}" if clean else None
    assert data.get("instance_prompt") == prompt
    assert data["widget"] == [{"text": prompt or "-", "output": {"url": "images/0.png"}}]
    assert data["base_model"] == BASE
    assert data["license"] == ("other" if word.strip() else "unknown")
    title = next(line for line in found.text.splitlines() if line.startswith("# "))
    assert re.sub(r"\\(.)", r"\1", title) == f"# {clean} + {clean}".rstrip() or not clean
    assert [line for line in found.text.splitlines() if line.startswith("#")] == [
        title, "## With lorabake", "## Without lorabake", "## Sources", "## Licence",
    ]  # fmt: skip


def variant(manifest: Manifest, kind: str) -> Manifest:
    rules: dict[str, Any] = {
        "klora": {}, "direct": {"rule": Constant((1.0, 1.0))}, "live": {"rule": Live()},
        "ziplora": {"rule": Constant((1.0, 1.0)), "columns": True},
        "blocks": {"rule": Constant((1.0, 0.0))}, "guided": {"rule": Constant((1.0, 1.0))},
        "half": {"rule": Constant((1.0, 1.0))},
    }  # fmt: skip
    layers = tuple(replace(layer, **rules[kind]) for layer in manifest.layers)
    guidance = guided.guidance() if kind == "guided" else None
    half = "conditional" if kind == "half" else "both"
    return replace(manifest, layers=layers, guidance=guidance, half=half)


@pytest.mark.parametrize(
    ("kind", "is_exact", "says", "not_says"),
    [
        ("klora", False, "at every step and do not choose between the two LoRAs, so", "made live"),
        ("direct", True, "exactly as lorabake does.", "which of them acts"),
        ("ziplora", True, "exactly as lorabake does, its trained coefficients included", "plan"),
        ("blocks", False, "apply both LoRAs in every layer", "made live"),
        ("live", False, "`lorabake record` turns", "encoders=lorabake"),
        ("live", False, "and do not choose between the two LoRAs, so", "which of them acts"),
        ("guided", False, "attach(pipe, encoders=lorabake.encoders(bundle", "made live"),
        ("guided", False, "at every step and do not guide the latents, so", "choose between"),
        ("half", False, "and do not leave one half of guidance without them, so", "which of them"),
        ("half", False, "act in the conditional half of classifier-free guidance", "made live"),
    ],
)
def test_each_method_has_its_sentences(
    kind: str, is_exact: bool, says: str, not_says: str, manifest: Manifest
) -> None:
    found = variant(manifest, kind)
    assert exact(found) is is_exact
    text = page(found).text.partition("<!--")[0]
    assert says in text
    assert not_says not in text


def test_what_is_said_of_a_picture(manifest: Manifest) -> None:
    share = {"content": 0.25, "style": 0.75, "both": 0.0}
    text = page(manifest, share=share).text
    assert "Of all layers and steps: 25% content, 75% style.\n" in text
    text = page(variant(manifest, "ziplora"), share={"both": 1.0}).text
    assert "![The trained coefficients of each layer](plan.png)" in text
    assert "Of all layers" not in text


def test_which_plans_are_drawn(loras: Path, tmp_path: Path) -> None:
    files = [loras / "cat.safetensors", loras / "ink.safetensors"]
    lacking = load_file(files[1])
    for key in [key for key in lacking if "mid_block" in key]:
        del lacking[key]
    save_file(lacking, tmp_path / "less.safetensors")
    for method, style, drawn in (
        ("direct", tmp_path / "less.safetensors", False), ("direct", files[1], False),
        ("klora", files[1], True), ("fixed", files[1], True),
    ):  # fmt: skip
        path = tmp_path / "bundle.safetensors"
        lorabake.make(files[0], style, path, method=method, force=True)
        told = lorabake.push(path, REPO, folder=tmp_path / "page", force=True)
        assert (card.PLAN in told.files) == drawn, method
        text = (tmp_path / "page" / "README.md").read_text()
        assert ("](plan.png)" in text) == drawn


@pytest.mark.parametrize(
    ("base", "sources", "family", "expected", "warned"),
    [
        ("some/model", ("a/b", "a/b"), "sdxl", "some/model", False),
        (None, ("a/b", None), "sdxl", "a/b", False),
        ("a folder", ("a/b", "a/b"), "sdxl", "a/b", False),
        (None, ("a/b", "c/d"), "flux", "black-forest-labs/FLUX.1-dev", True),
        (None, ("sd_xl.safetensors", "d/x.safetensors"), "sd15", BASE, True),
        ("toy", (None, None), "generic", None, True),
        (None, (None, None), "of tomorrow", None, True),
    ],
)
def test_the_base_model(
    base: str | None, sources: tuple[str | None, ...], family: str, expected: str | None,
    warned: bool, manifest: Manifest,
) -> None:  # fmt: skip
    both = zip(manifest.sources, sources, strict=True)
    given = tuple(replace(source, base_model=name) for source, name in both)
    found = replace(manifest, base=base, sources=given, family=family)
    assert facts.base_model(found)[0] == expected
    assert bool(facts.base_model(found)[1]) == warned
    data: dict[str, Any] = page(found).data.to_dict()
    assert data.get("base_model") == expected
    assert data.get("base_model_relation") == (expected and "adapter")


def test_the_instance_prompt(manifest: Manifest) -> None:
    words = [("sks cat", "x"), ("in the style of ink",)]
    both = zip(manifest.sources, words, strict=True)
    found = replace(manifest, sources=tuple(replace(s, trigger_words=w) for s, w in both))
    assert facts.instance_prompt(found) == ("sks cat in the style of ink", "")
    lacking = told(manifest, " ")
    prompt, warning = facts.instance_prompt(lacking)
    assert prompt is None
    assert "the content and the style LoRA names no trigger word" in warning
    assert "instance_prompt" not in page(lacking).data.to_dict()


@pytest.mark.parametrize(
    ("licence", "says"),
    [
        ("mit", "mit, the stricter of those of its two sources."),
        ("of ink", "of-ink, taken for the stricter of those of its two sources."),
        ("", "unknown, for want of a licence that both sources state."),
    ],
)
def test_why_it_has_this_licence(licence: str, says: str, manifest: Manifest) -> None:
    assert f"This file: {says}" in page(manifest, licence=licence).text


def test_an_empty_prompt_is_none(bundle: Path, tmp_path: Path) -> None:
    told = lorabake.push(bundle, REPO, folder=tmp_path / "page", instance_prompt=" ")
    assert told.instance_prompt is None
    assert "instance_prompt" not in (tmp_path / "page" / "README.md").read_text()


def test_families_have_their_tags(manifest: Manifest) -> None:
    for family, task, tag in (
        ("sdxl", "text-to-image", "stable-diffusion-xl"), ("wan", "text-to-video", "wan"),
        ("flux", "text-to-image", "flux"),
    ):  # fmt: skip
        found = page(replace(manifest, family=family))
        data: dict[str, Any] = found.data.to_dict()
        assert data["pipeline_tag"] == task
        assert {task, tag} <= {*data["tags"]}
        assert (".frames[0]" in found.text) == (task == "text-to-video")


@pytest.mark.parametrize("family", APPS["comfyui"].families)
def test_only_apps_that_open_it_are_named(family: str, manifest: Manifest) -> None:
    """By the apps' own key rules."""
    opens = all(
        isinstance(APPS[app].families[family], Rules) for app in ("comfyui", "forge", "invokeai")
    )
    text = page(replace(manifest, family=family)).text
    assert ("In ComfyUI, Forge and InvokeAI" in text) == opens


def test_the_code_of_a_card_runs(hub: Hub, tmp_path: Path) -> None:
    """Both examples on a tiny model, the bundle from the hub."""
    tiny.save_sd15(tmp_path / "model")
    shapes = {n: s for n, s in tiny.shapes(tiny.sd15()[0]).items() if "attn1" in n}
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        write_lora(tmp_path / name, shapes, "peft", seed)
    lorabake.make("a.safetensors", "b.safetensors", "ab.safetensors", base=BASE)
    with warnings.catch_warnings(action="ignore"):
        lorabake.push("ab.safetensors", REPO, instance_prompt='a "cat"')
        files = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
        blocks = re.findall(r"^```python\n(.*?)^```", files["README.md"].decode(), re.M | re.S)
        images: list[Any] = []
        for block in blocks:
            code = block.replace(BASE, str(tmp_path / "model")).replace('"cuda"', '"cpu"')
            code = code.replace('\\"cat\\"")', '\\"cat\\"", num_inference_steps=1)')
            scope: dict[str, Any] = {}
            torch.manual_seed(0)
            exec(code, scope)
            images.append(scope["image"])
    assert len(images) == 2
    assert images[0].size == images[1].size == (16, 16)


@pytest.mark.parametrize(
    ("words", "span"),
    [("sks cat", "`sks cat`"), ("a`b", "`` a`b ``"), ("`co``de`\n", "``` `co``de` ```")],
)
def test_code_spans(words: str, span: str) -> None:
    assert code(words) == span
