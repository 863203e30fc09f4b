"""The keys of bundles, by the rules of other apps: each leads to the right module of the app."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lorabake
from lorabake.bundle import complete
from lorabake.lora import LayerName, LowRank, Pair, families

from ..lora import layouts
from ..oracle import write_lora
from . import pipes
from .rules import APPS, Rules, expected

MODELS = {
    "sd15": ("sd15",),
    "sd2": ("sd2",),
    "sdxl": ("sdxl",),
    "sd3": ("sd3-medium", "sd35-medium"),
    "flux": ("flux",),
    "flux2": ("flux2-dev", "flux2-klein-4b"),
    "zimage": ("zimage",),
    "qwen": ("qwen",),
    "wan": ("wan21-i2v-14b",),
    "wan22": ("wan22-a14b",),
}
OPENING = [
    (app, family, model)
    for app in APPS
    for family, models in MODELS.items()
    if isinstance(APPS[app].families[family], Rules)
    for model in models
]


def rules(app: str, family: str) -> Rules:
    found = APPS[app].families[family]
    assert isinstance(found, Rules)
    return found


def bundled(family: str, model: str) -> list[LayerName]:
    """Every layer of a model that a bundle can have."""
    known = families.get(family)
    return [n for n in layouts.model(model) if known.owns(n) and known.spell(n) is not None]


def stems(family: str, names: list[LayerName]) -> list[str]:
    """The keys of these layers, without the ends that every app of the family must accept."""
    keys = [families.get(family).keys(name) for name in names]
    return [
        down.removesuffix(".lora_A.weight").removesuffix(".lora_down.weight") for down, _ in keys
    ]


def test_each_family_has_rules() -> None:
    named = {family.name for family in families.MEMBERS if family.hub_id is not None}
    assert named == set(MODELS)
    assert all(set(app.families) == named for app in APPS.values())


@pytest.mark.parametrize(("app", "family", "model"), OPENING)
def test_each_key_leads_to_its_module(app: str, family: str, model: str) -> None:
    found, names = rules(app, family), bundled(family, model)
    assert len(names) > 100
    reached: list[str] = []
    for name, stem in zip(names, stems(family, names), strict=True):
        keys = families.get(family).keys(name)
        assert keys == (f"{stem}.{found.ends[0]}", f"{stem}.{found.ends[1]}")
        target = found.find(stem)
        if found.lacks is not None and re.fullmatch(found.lacks, str(name)):
            assert target is None, name
        else:
            assert target in expected(name), name
            reached.append(target)
    assert len(set(reached)) == len(reached)


@pytest.mark.parametrize(("app", "family", "model"), OPENING)
def test_an_app_accepts_the_whole(app: str, family: str, model: str) -> None:
    """Not more unknown keys than it puts up with, and the layers by which it tells a family."""
    found, names = rules(app, family), bundled(family, model)
    kept = [n for n in names if app != "invokeai" or not re.fullmatch(found.lacks or "-", str(n))]
    all_stems = stems(family, kept)
    unknown = 2 * sum(found.find(stem) is None for stem in all_stems)
    assert unknown <= (APPS[app].keys or 0) or APPS[app].share is not None
    assert unknown <= (APPS[app].share or 1.0) * 2 * len(kept)
    assert found.faults(f"{stem}.{end}" for stem in all_stems for end in found.ends) == []


WRONG = {
    ("comfyui", "sdxl"): "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ("forge", "sdxl"): "lora_unet_down_blocks_9_attentions_0_proj_in",
    ("invokeai", "sdxl"): "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ("comfyui", "wan"): "transformer.blocks.0.attn1.to_q",
    ("forge_neo", "wan"): "diffusion_model.blocks.0.attn1.to_q",
    ("comfyui", "flux"): "transformer.transformer_blocks.0.ff.linear_in",
    ("invokeai", "flux"): "transformer.norm_out.linear",
}


@pytest.mark.parametrize(("app", "family"), WRONG)
def test_other_styles_lead_nowhere(app: str, family: str) -> None:
    assert rules(app, family).find(WRONG[app, family]) is None


def pairs(family: str, pattern: str) -> list[Pair]:
    """A content LoRA that has the layers of a family's model that match."""
    made: list[Pair] = []
    for name, shape in layouts.model(MODELS[family][0]).items():
        if re.search(pattern, str(name)):
            down, up = torch.zeros(2, shape[1]), torch.zeros(shape[0], 2)
            made.append(Pair(name, LowRank(down, up, 0.5), None))
    assert made
    return made


PARTIAL = [
    ("flux", r"\.transformer_blocks\.\d+\.attn\.(to|add)_[qv]"),
    ("flux", r"\.transformer_blocks\.7\.ff\.net\.2$"),
    ("flux", r"\.single_transformer_blocks\.(7|20)\.proj_out"),
    ("flux", r"\.norm1\.linear"),
    ("flux2", r"\.transformer_blocks\.\d+\.attn\."),
    ("flux2", r"\.single_transformer_blocks\.3\.attn\.to_out"),
]


@pytest.mark.parametrize(("family", "pattern"), PARTIAL)
def test_invokeai_recognises_a_lora_of_few_layers(family: str, pattern: str) -> None:
    """By empty layers in the shapes that the model has."""
    found, few = rules("invokeai", family), pairs(family, pattern)
    whole = complete(few, family)
    for some, right in ((few, False), (whole, True)):
        keys = [key for pair in some for key in families.get(family).keys(pair.name)]
        assert (found.faults(keys) == []) is right
    real = layouts.model(MODELS[family][0])
    assert {p.name: p.shape for p in whole}.items() <= real.items()
    kept = [pair for pair in whole if pair in few]
    assert len(kept) == len(few)
    for pair in whole:
        if pair not in few:
            assert pair.ranks == (1, 0)
            assert pair.content is not None
            assert not pair.content.up.any()
    assert list(complete(whole, family)) == list(whole)


@pytest.mark.parametrize("method", ["direct", "klora"])
@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_invokeai_recognises_a_bundle_of_few_layers(
    family: str, method: str, tmp_path: Path
) -> None:
    layers = pipes.layers(pipes.CASES[family].build()).items()
    shapes = {n: tuple(m.weight.shape) for n, m in layers if n.endswith((".to_v", ".linear_out"))}
    paths = (tmp_path / "content.safetensors", tmp_path / "style.safetensors")
    for i, path in enumerate(paths):
        write_lora(path, shapes, "peft", seed=i, keep=1.0)
    bundle = tmp_path / "bundle.safetensors"
    lorabake.make(*paths, bundle, method=method, family=family)
    with safe_open(bundle, "pt") as file:
        keys = list(file.keys())
    found = rules("invokeai", family)
    assert found.faults(keys) == []
    assert all(found.find(key.removesuffix(f".{end}")) for end in found.ends for key in keys
               if key.endswith(end))  # fmt: skip
    assert {end for key in keys for end in found.ends if key.endswith(end)} == set(found.ends)


@pytest.mark.parametrize("family", ["flux", "flux2", "qwen", "sdxl"])
def test_nothing_is_added_to_a_whole_lora(family: str) -> None:
    full = [
        Pair(name, LowRank(torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1)), None)
        for name, shape in layouts.model(MODELS[family][0]).items()
        if not name.component.startswith("text_encoder")
    ]
    assert len(complete(full, family)) == len(full)


def test_the_guide_says_which_app_opens_what() -> None:
    text = (Path(__file__).parents[2] / "docs" / "apps.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    columns = [rows[0].index(app.name) for app in APPS.values()]
    titles = {families.get(family).title: family for family in MODELS}
    told = {row[0]: row for row in rows[2:] if row[0] in titles}
    assert set(told) == set(titles)
    for title, family in titles.items():
        for column, app in zip(columns, APPS.values(), strict=True):
            opens = isinstance(app.families[family], Rules)
            assert told[title][column].startswith("yes") is opens, (title, app.name)
            assert told[title][column].startswith("no") is not opens, (title, app.name)
