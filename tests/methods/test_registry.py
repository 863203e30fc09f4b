"""The folder is the registry."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from lorabake import methods
from lorabake.errors import RecipeError


def test_all_methods_are_found() -> None:
    wanted = ("blora", "direct", "dynamic", "est", "fixed", "klora", "random", "switch", "ziplora",
              "ziplora-layerwise")  # fmt: skip
    assert methods.names() == wanted
    for name in methods.names():
        method = methods.get(name)
        assert (method.name, is_dataclass(method.params)) == (name, True)
        assert method.summary
        assert fields(method.params)


def test_a_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coin.py").write_text("class METHOD:\n    name = 'coin'\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "coin" in methods.names()
    assert methods.get("coin").name == "coin"


@pytest.mark.parametrize(
    ("name", "advice"),
    [("klro", "Did you mean 'klora'?"), ("zzz", "Choose from blora, direct, dynamic, est")],
)
def test_an_unknown_method_is_told_with_the_nearest(name: str, advice: str) -> None:
    with pytest.raises(RecipeError) as caught:
        methods.get(name)
    assert advice in str(caught.value)
    assert caught.value.exit_code == 2
