from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lorabake.errors import BundleError
from lorabake.runtime.guidance import Guidance, Reference
from lorabake.runtime.manifest import Layer, Manifest, Source, dumps, loads
from lorabake.runtime.plan import Constant, Live, Scale, Table, Threshold
from lorabake.runtime.selection import Selection


def source(role: str) -> Source:
    return Source(role, f"a {role} é", "0a" * 32, 1, ("<x>",), None, "mit")


MANIFEST = Manifest(
    method="klora",
    params={"K": None, "alpha": 1.5, "words": ["a"]},
    family="sd15",
    base=None,
    sources=(source("content"), source("style")),
    layers=(
        Layer("text_encoder", "text_model.q", "t.down", "t.up", (4, 2), Constant((1, 1))),
        Layer("unet", "a.0.to_q", "a.down", "a.up", (4, 8), Threshold((0.1 + 0.2, 1 / 3))),
        Layer("unet", "a.1.to_q", "b.down", "b.up", (0, 8), Constant((1.0, 1.0))),
        Layer("unet", "a.2.to_q", "c.down", "c.up", (1, 1), Table((0, 1, 1))),
    ),
    scale=Scale("modulo", 1.5, 1.3, 2 / 3),
    digest="0123456789abcdef" * 4,
)


def test_round_trip_is_exact_and_canonical() -> None:
    text = dumps(MANIFEST)
    assert loads(text) == MANIFEST
    assert dumps(loads(text)) == text
    assert text.isascii()
    assert " " not in text.replace("a content", "").replace("a style", "").replace(" \\u00e9", "")
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text
    assert json.loads(text)["layers"][1]["scores"] == [0.1 + 0.2, 1 / 3]
    # Equal numbers, equal bytes, whatever their Python type was.
    layers = (replace(MANIFEST.layers[0], rule=Constant((1.0, 1.0))), *MANIFEST.layers[1:])
    assert dumps(replace(MANIFEST, layers=layers)) == text


def test_the_rank_of_a_reduced_source_is_there_only_if_it_has_one() -> None:
    reduced = replace(MANIFEST, sources=(source("content"), replace(source("style"), svd_rank=64)))
    text = dumps(reduced)
    assert loads(text) == reduced
    assert [of.get("svd_rank", "none") for of in json.loads(text)["sources"]] == ["none", 64]
    assert json.loads(text)["format"] == "1.0"
    for wrong in (0, -1, 32_769, 1.5, "64", True, None):
        value = json.loads(text)
        value["sources"][1]["svd_rank"] = wrong
        with pytest.raises(BundleError, match=r"sources\[1\]\.svd_rank must be a whole number"):
            loads(json.dumps(value))


def edited(*path: Any, to: Any = None) -> Callable[[dict[str, Any]], None]:
    """An edit that sets a field, or removes it if no value is given."""

    def edit(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        if to is None:
            del value[path[-1]]
        else:
            value[path[-1]] = to

    return edit


BAD = {
    "no method": (edited("method"), "method is missing"),
    "method is no text": (edited("method", to="\ud800"), "lone surrogate"),
    "a name is no text": (edited("params", to={"\udfff": 1}), "lone surrogate"),
    "method is a number": (edited("method", to=3), "method must be a string"),
    "params is a list": (edited("params", to=[1]), "params must be an object"),
    "format": (edited("format", to="1"), "format must be a version"),
    "format is a number": (edited("format", to=1.0), "format must be a string"),
    "one source": (edited("sources", 1), "sources must be a list of two"),
    "source without a role": (edited("sources", 1, "role"), r"sources\[1\].role is missing"),
    "short sha256": (edited("sources", 0, "sha256", to="00"), "sha256 must be 64"),
    "words": (edited("sources", 0, "trigger_words", to=[1]), "list of strings"),
    "digest": (edited("digest", to="A" * 64), "digest must be 64"),
    "no layers": (edited("layers", to=[]), "layers must be a list of 1"),
    "layer is text": (edited("layers", 1, to="x"), r"layers\[1\] must be an object"),
    "component": (edited("layers", 1, "component", to="__class__.x"), "component must be"),
    "module": (edited("layers", 1, "module", to="a..b"), "module must be"),
    "same module": (edited("layers", 1, "module", to="a.2.to_q"), "unet.a.2.to_q occurs twice"),
    "same tensor": (edited("layers", 1, "up", to="a.down"), "a.down occurs twice"),
    "three ranks": (edited("layers", 1, "ranks", to=[1, 2, 3]), "ranks must be a list of 2"),
    "negative rank": (edited("layers", 1, "ranks", to=[1, -2]), "ranks must be a list of 2"),
    "true is no rank": (edited("layers", 1, "ranks", to=[1, True]), "ranks must be a list of 2"),
    "huge rank": (edited("layers", 1, "ranks", to=[1, 10**9]), "ranks must be a list of 2"),
    "no rank": (edited("layers", 2, "ranks", to=[0, 0]), "greater than 0"),
    "one-sided threshold": (edited("layers", 1, "ranks", to=[0, 2]), "to choose"),
    "text encoder table": (edited("layers", 3, "component", to="text_encoder"), "to choose"),
    "one-sided columns": (
        edited("layers", 2, "columns", to=True),
        r"layers\[2\].ranks must be greater than 0 for both sources",
    ),
    "columns is false": (edited("layers", 3, "columns", to=False), "columns must be true, or not"),
    "columns is 1": (edited("layers", 3, "columns", to=1), "columns must be true, or not"),
    "columns is a list": (edited("layers", 3, "columns", to=[1.0]), "columns must be true, or not"),
    "no rule": (edited("layers", 1, "scores"), "exactly one of"),
    "two rules": (edited("layers", 1, "gates", to=[1, 1]), "exactly one of"),
    "negative score": (edited("layers", 1, "scores", to=[-1, 1]), "not negative"),
    "score is text": (edited("layers", 1, "scores", to=["1", 1]), "a list of 2 numbers"),
    "huge gate": (edited("layers", 0, "gates", to=[1e308, 1]), "from -10000 to 10000"),
    "huge score": (edited("layers", 1, "scores", to=[10**400, 1]), "a list of 2 numbers"),
    "select": (edited("layers", 3, "select", to="012"), "select must be"),
    "empty select": (edited("layers", 3, "select", to=""), "select must be"),
    "no scale": (edited("scale"), "scale is missing"),
    "pattern": (edited("scale", "pattern", to="cubic"), "pattern must be one of linear, modulo"),
    "gamma": (edited("scale", "gamma", to=0), "gamma must be greater than 0"),
    "alpha": (edited("scale", "alpha", to=-1), "alpha must be greater than 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_format_is_named(name: str) -> None:
    edit, message = BAD[name]
    value = json.loads(dumps(MANIFEST))
    edit(value)
    with pytest.raises(BundleError, match=message):
        loads(json.dumps(value))


def test_null_scale_with_scores() -> None:
    value = json.loads(dumps(MANIFEST)) | {"scale": None}
    with pytest.raises(BundleError, match="because layers have scores"):
        loads(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", '{"format":"1.0","format":"1.0"}', '{"a":NaN}', '{"a":-Infinity}',
     '{"a":1e999}', "[" * 100_000, '{"a":' + "9" * 5000 + "}"],
)  # fmt: skip
def test_hostile_json(text: str) -> None:
    with pytest.raises(BundleError, match="manifest"):
        loads(text)


def test_a_name_that_is_no_text_is_written_as_text() -> None:
    """A file name that is not UTF-8 reaches Python as lone surrogates."""
    odd = replace(MANIFEST.sources[0], name="a\udce9b")
    text = dumps(replace(MANIFEST, sources=(odd, MANIFEST.sources[1])))
    assert loads(text).sources[0].name == "a?b"


def test_versions() -> None:
    value = json.loads(dumps(MANIFEST))
    with pytest.raises(BundleError, match=r"format 2.0 cannot be read.*1.3. Update lorabake"):
        loads(json.dumps(value | {"format": "2.0"}))
    newer = copy.deepcopy(value) | {"format": "1.7", "novelty": {"x": 1}}
    newer["layers"][0]["novelty"] = 1
    with pytest.warns(UserWarning, match="format 1.7, newer than 1.3"):
        assert loads(json.dumps(newer)) == replace(MANIFEST, format=(1, 7))
    newer["layers"][1]["rule"] = newer["layers"][1].pop("scores")
    with pytest.warns(UserWarning, match="1.7"), pytest.raises(BundleError, match="exactly one of"):
        loads(json.dumps(newer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loads(json.dumps(value | {"novelty": 1}))


def test_the_half_of_guidance() -> None:
    """Left out where it is `both`, so that such files keep their bytes."""
    value = json.loads(dumps(MANIFEST))
    assert "half" not in value
    assert loads(json.dumps(value | {"half": "both"})) == MANIFEST
    one = replace(MANIFEST, half="conditional", format=(1, 3))
    text = dumps(one)
    assert json.loads(text) == value | {"format": "1.3", "half": "conditional"}
    assert loads(text) == one
    assert json.loads(dumps(replace(DYNAMIC, half="conditional")))["format"] == "1.3"
    for wrong in ("Conditional", "", "unconditional", None, 1, ["both"]):
        with pytest.raises(BundleError, match=r"half must be (one of both, cond|a string)"):
            loads(json.dumps(value | {"half": wrong}))


def test_the_lowest_version_that_describes_the_layers() -> None:
    assert json.loads(dumps(replace(MANIFEST, format=(1, 7))))["format"] == "1.0"
    value = json.loads(dumps(MANIFEST))
    assert not any("columns" in layer for layer in value["layers"])
    layers = (*MANIFEST.layers[:3], replace(MANIFEST.layers[3], columns=True))
    text = dumps(replace(MANIFEST, layers=layers))
    newer = json.loads(text)
    assert newer["format"] == "1.1"
    assert newer["layers"][3].pop("columns") is True
    assert newer | {"format": "1.0"} == value
    assert loads(text) == replace(MANIFEST, layers=layers, format=(1, 1))
    assert dumps(loads(text)) == text


@pytest.mark.parametrize(
    "change",
    [
        {"digest": ""},
        {"params": {"x": float("nan")}},
        {"params": {"x": object()}},
        {"scale": None},
        {"scale": Scale("linear", 1.5, float("inf"), 1)},
        {"layers": ()},
    ],
)
def test_a_wrong_manifest_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        dumps(replace(MANIFEST, **change))


GUIDED = Guidance(
    references=(
        Reference((0.6, 0.8), (1.0,), "a <c>", 3),
        Reference((-1.0, 1e-9), (1.0,), None, None),
    ),
    clip="some/clip", dino="some/dino", m=2, every=3, through="latents", weights=(1, 0.5, 0),
)  # fmt: skip
DYNAMIC = replace(
    MANIFEST,
    method="dynamic",
    layers=(replace(MANIFEST.layers[1], rule=Live()), *MANIFEST.layers[2:3]),
    scale=None,
    format=(1, 2),
    selection=Selection("js", 2, "batch", 256),
    guidance=GUIDED,
)


def test_what_is_live_and_guided_comes_back() -> None:
    text = dumps(DYNAMIC)
    assert loads(text) == DYNAMIC
    assert dumps(loads(text)) == text
    value = json.loads(text)
    assert value["format"] == "1.2"
    assert value["layers"][0]["live"] is True
    assert value["live"] == {
        "criterion": "js", "temperature": 2.0, "scope": "batch", "tokens": 256
    }  # fmt: skip
    assert json.loads(dumps(replace(DYNAMIC, layers=MANIFEST.layers[2:3])))["format"] == "1.2"
    single = replace(GUIDED.references[0], clip=(torch.tensor(1 / 3).item(), 0.9))
    text = dumps(replace(DYNAMIC, guidance=replace(GUIDED, references=(single, single))))
    assert "0.333333343," in text
    kept = loads(text).guidance
    assert kept is not None
    assert torch.equal(torch.tensor(kept.references[0].clip), torch.tensor(single.clip))


BROKEN_DYNAMIC: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no live": (
        edited("live"),
        "live must be an object, because layers choose live|live is missing",
    ),
    "live false": (edited("layers", 0, "live", to=False), "live must be true"),
    "criterion": (edited("live", "criterion", to="mse"), "criterion must be one of kl, js"),
    "scope": (edited("live", "scope", to=1), "scope must be a string"),
    "tokens": (edited("live", "tokens", to=-1), "tokens must be a whole number from 0"),
    "temperature": (edited("live", "temperature", to=0), "temperature must be from 0.001 to 1000"),
    "one reference": (edited("guidance", "references", to=[{}]), "two references"),
    "sizes": (edited("guidance", "references", 0, "clip", to=[1.0]), "clip embeddings of one size"),
    "zeros": (edited("guidance", "references", 0, "dino", to=[0.0]), "squares add up to 1"),
    "empty": (edited("guidance", "references", 0, "dino", to=[]), "1 to 65536 numbers"),
    "text": (edited("guidance", "references", 1, "clip", to=["a", 1]), "list of 2 numbers"),
    "seed": (edited("guidance", "references", 0, "seed", to=-1), "seed must be a whole number"),
    "no seed": (edited("guidance", "references", 0, "seed"), "seed is missing"),
    "null": (lambda value: value.update(live=None), "live must be an object"),
    "painted by nobody": (
        lambda value: value["guidance"]["references"][0].update(seed=None),
        "seed must be null where prompt is",
    ),
    "encoders": (edited("guidance", "encoders", "clip"), "encoders.clip is missing"),
    "m": (edited("guidance", "m", to=-1.0), "m must be a number from 0 to 1000000"),
    "every": (edited("guidance", "every", to=0), "every must be a whole number from 1"),
    "through": (edited("guidance", "through", to="vae"), "through must be one of"),
    "weights": (edited("guidance", "weights", to=[1, 1]), "list of 3 numbers"),
    "weight": (edited("guidance", "weights", to=[1, 1, -1]), "3 numbers from 0 to"),
    "too long": (edited("guidance", "references", 0, "dino", to=[1e300]), "squares add up to 1"),
}


@pytest.mark.parametrize("case", BROKEN_DYNAMIC)
def test_broken_live_and_guidance_are_refused(case: str) -> None:
    edit, message = BROKEN_DYNAMIC[case]
    value = json.loads(dumps(DYNAMIC))
    edit(value)
    with pytest.raises(BundleError, match=message):
        loads(json.dumps(value))
