"""Presets, settings, and every way to get them wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from lorabake import methods, recipe
from lorabake.errors import RecipeError

SHIPPED = Path(__file__).parent.parent / "schedules"
NAMES = ("blora", "direct", "dynamic", "dynamic-cosine", "dynamic-dot", "dynamic-fls",
         "dynamic-js", "dynamic-llr", "est", "fixed", "klora", "klora-released", "klora-s-star",
         "random", "switch", "ziplora", "ziplora-layerwise")  # fmt: skip


def test_the_shipped_presets() -> None:
    found = {name: (method, text) for name, method, text in recipe.presets()}
    assert tuple(found) == NAMES
    assert all(text for _, text in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_all_that_there_is_to_say(name: str) -> None:
    content = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
    chosen = recipe.resolve(None, name, {})
    assert content["params"] == chosen.params_dict
    assert content["reference"]
    assert (chosen.name, chosen.method) == (name, content["method"])


@pytest.mark.parametrize("name", methods.names())
def test_the_preset_named_like_a_method_has_its_defaults(name: str) -> None:
    assert recipe.resolve(None, name, {}) == recipe.resolve(name, None, {})
    assert recipe.resolve(name, name, {}) == recipe.resolve(name)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_half(name: str, tmp_path: Path) -> None:
    assert recipe.resolve(name).half == "both"
    chosen = recipe.resolve(name, None, {"half": "conditional"})
    assert chosen.half == "conditional"
    assert chosen.params_dict == recipe.resolve(name).params_dict
    path = tmp_path / "mine.toml"
    path.write_text(f'method = "{name}"\nparams = {{ half = "conditional" }}\n')
    assert recipe.resolve(None, str(path)).half == "conditional"
    assert recipe.resolve(None, str(path), {"half": "both"}).half == "both"


def test_the_released_scale() -> None:
    assert recipe.resolve(None, "klora-released").params_dict == {
        "pattern": "modulo", "alpha": 1.5, "beta": 1.275, "gamma": "trimmed-mean", "k": "1x",
    }  # fmt: skip


def test_settings_go_before_the_preset_and_that_before_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('method = "klora"\nparams = { alpha = 2, k = 9 }\n')
    chosen = recipe.resolve(None, str(path), {"k": "3x"})
    assert chosen.name == "mine"
    assert chosen.params_dict == {
        "pattern": "linear", "alpha": 2.0, "beta": 0.5, "gamma": "sum", "k": "3x",
    }  # fmt: skip


def test_k_lora_is_what_nobody_asked_for() -> None:
    assert recipe.resolve().method == "klora"


@pytest.mark.parametrize(
    ("method", "preset", "settings", "message"),
    [
        ("klore", None, {}, "Did you mean 'klora'?"),
        (None, "klora-released-", {}, "Did you mean 'klora-released'?"),
        (None, "qqq", {}, "Choose from blora, direct, dynamic, dynamic-cosine"),
        ("klora", None, {"alhpa": 1}, "Did you mean 'alpha'?"),
        ("random", None, {"alpha": 1}, "no parameter 'alpha'. Choose from bins, half, seed"),
        ("direct", "klora", {}, "preset klora: is for the method klora, but the method asked for"),
        ("klora", "no/such.toml", {}, "no/such.toml: cannot be read (No such file"),
        ("klora", None, {"alpha": "big"}, "alpha: 'big' is not a finite number"),
        ("klora", None, {"alpha": True}, "alpha: True is not a finite number"),
        ("klora", None, {"beta": float("nan")}, "beta: nan is not a finite number"),
        ("klora", None, {"beta": float("inf")}, "beta: inf is not a finite number"),
        ("klora", None, {"beta": 10**400}, "is not a finite number"),
        ("klora", None, {"alpha": 0, "pattern": "modulo"}, "greater than 0 for the modulo pattern"),
        ("fixed", None, {"pattern": "spiral"}, "pattern: 'spiral' is not possible. Choose from"),
        ("fixed", None, {"pattern": ["linear"]}, "pattern: ['linear'] is not possible"),
        ("klora", None, {"gamma": 0}, "gamma: 0 must be greater than 0"),
        ("klora", None, {"gamma": -1.5}, "gamma: -1.5 must be greater than 0"),
        ("klora", None, {"gamma": "median"}, "Choose from sum, trimmed-mean, none, or give"),
        ("klora", None, {"k": 0}, "k: 0 is not a whole number"),
        ("klora", None, {"k": 1.5}, "k: 1.5 is not a whole number"),
        ("klora", None, {"k": True}, "k: True is not a whole number"),
        ("klora", None, {"k": "0x"}, "k: '0x' is not possible"),
        ("klora", None, {"k": "-2x"}, "k: '-2x' is not possible"),
        ("klora", None, {"k": "many"}, "k: 'many' is not possible"),
        ("random", None, {"seed": 1.0}, "seed: 1.0 is not a whole number"),
        ("random", None, {"bins": 0}, "bins: 0 is not a whole number from 1 to 1000"),
        ("direct", None, {"w_c": None}, "w_c: None is not a finite number"),
        ("direct", None, {"half": "cond"}, "half: 'cond' is not possible. Choose from both, cond"),
        ("klora", None, {"half": None}, "half: None is not possible"),
        ("klora", None, {"hlaf": "both"}, "Did you mean 'half'?"),
    ],
)
def test_what_is_wrong_is_said(
    method: str | None, preset: str | None, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.resolve(method, preset, settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = klora", "is not TOML"),
        ("\xff\xfe", "is not TOML"),
        ("", "has no method"),
        ('method = "klro"', "Did you mean 'klora'?"),
        ("method = 3", "method must be text, not 3"),
        ('method = "klora"\nparams = 3', "params must be a table, not 3"),
        ('method = "klora"\nparam = {}', "a preset has no key 'param'. Did you mean 'params'?"),
        ('method = "klora"\n[params]\ngama = 1', "Did you mean 'gamma'?"),
        ('method = "klora"\n[params]\nalpha = "1"', "alpha: '1' is not a finite number"),
        ('method = "klora"\n[params]\nalpha = 2020-01-01', "is not a finite number"),
    ],
)
def test_a_bad_preset_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RecipeError) as caught:
        recipe.resolve(None, str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("alpha=1.5", "alpha", 1.5),
        ("alpha = 2", "alpha", 2),
        ("gamma=trimmed-mean", "gamma", "trimmed-mean"),
        ('gamma="sum"', "gamma", "sum"),
        ("k=0.5x", "k", "0.5x"),
        ("k=a=b", "k", "a=b"),
        ("k=1\nseed=2", "k", "1\nseed=2"),
    ],
)
def test_a_setting_is_toml_or_a_bare_word(text: str, key: str, value: object) -> None:
    assert recipe.parse_setting(text) == (key, value)


@pytest.mark.parametrize("text", ["alpha", "=1", "alpha=", ""])
def test_a_setting_has_a_key_and_a_value(text: str) -> None:
    with pytest.raises(RecipeError, match="key=value"):
        recipe.parse_setting(text)
