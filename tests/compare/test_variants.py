"""From words to variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabake import methods
from lorabake.compare.request import Request, Setup, slugs
from lorabake.compare.triggers import without_trigger
from lorabake.compare.variants import parse, split, variants
from lorabake.errors import RecipeError
from lorabake.lora import Lora, Provenance


def labels(*named: str, **given: Any) -> list[str]:
    return [x.label for x in variants(named, (), (), given={}, **given)]


def test_by_default_all_that_need_nothing_more() -> None:
    free = labels()
    assert {"klora", "dynamic", "est", "switch", "fixed", "random", "blora"} <= {*free}
    assert not {"direct", "ziplora", "ziplora-layerwise"} & {*free}
    prompts = {"content_prompt": "a cat", "style_prompt": "in ink"}
    more = variants((), (), (), given=prompts)
    assert {x.label for x in more} >= {*methods.names()} - {"direct"}
    assert {x.label: x for x in more}["ziplora"].params == prompts
    assert dict({x.label: x for x in more}["klora"].params) == {}


def test_parameters_go_where_they_belong() -> None:
    (one,) = variants(["klora:alpha=1.4,k=2x,style_strength=0.5"], (), (), given={})
    assert dict(one.params) == {"alpha": 1.4, "k": "2x"}
    assert dict(one.overrides) == {"style_strength": 0.5}
    assert one.label == "klora alpha=1.4 k=2x style_strength=0.5"
    (half,) = variants(["klora:half=conditional"], (), (), given={})
    assert {**half.params, **half.overrides} == {"half": "conditional"}


def test_grids_multiply_and_skip_what_is_fixed() -> None:
    found = labels("klora", "est", "klora:alpha=9", grid=["alpha=1,2", "beta=0,1"])
    assert found[:4] == [f"klora alpha={a} beta={b}" for a in (1, 2) for b in (0, 1)]
    assert found[-2:] == ["klora alpha=9 beta=0", "klora alpha=9 beta=1"]
    assert split('[1, 2],"a,b",c') == ["[1, 2]", '"a,b"', "c"]


def test_presets() -> None:
    (one,) = variants((), ["klora-s-star:alpha=1.4"], (), given={})
    assert (one.label, one.method) == ("klora-s-star alpha=1.4", "klora")


@pytest.mark.parametrize(
    ("named", "given", "message"),
    [
        (["kloar"], {}, "Did you mean 'klora'"),
        (["klora:alhpa=1"], {}, "no parameter"),
        (["klora:alpha=often"], {}, "finite number"),
        (["klora", "klora"], {}, "two variants 'klora'"),
        (["ziplora"], {}, "the content prompt is missing"),
        ([":alpha=1"], {}, "names nothing"),
        (["klora"], {"grid": ["tau=1,2"]}, "no variant has a parameter 'tau'"),
        (["klora"], {"grid": ["alpha"]}, "is no axis"),
        (["klora"], {"settings": ["tau=1"]}, "no variant has a parameter 'tau'"),
    ],
)
def test_bad_words(named: list[str], given: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        labels(*named, **given)
    assert parse("a:b", "")[0] == "a:b"


def test_the_command_is_what_was_asked_for() -> None:
    request = Request("a b", "s", "m", ("it's a cat",), style_images="x")
    setup = Setup(methods=("klora:alpha=2",), grid=("beta=0,1",), first_seed=3, svd_rank=4)
    assert request.command(setup, "out") == (
        "lorabake compare 'a b' s --base m --prompt 'it'\"'\"'s a cat' --style-images x "
        "--method klora:alpha=2 --grid beta=0,1 --seeds 8 --seed 3 --steps 25 --svd-rank 4 -o out"
    )


def test_file_names() -> None:
    assert slugs(["a b", "a/b", "../..", "klora alpha=1.4", "A-b"]) == [
        "a-b", "a-b-2", "x", "klora-alpha=1.4", "A-b-3",
    ]  # fmt: skip


def test_prompts_without_trigger_words() -> None:
    def lora(*words: str) -> Lora:
        return Lora({}, "sd15", Provenance("x", "0" * 64, words), {})

    prompts = ["a sks dog in ink style", "a dog in ink", "A SKS Dog"]
    found = [*without_trigger([lora("a photo of sks dog"), lora("ink style", "szn")], prompts)]
    assert len(found) == 2
    assert "content" in found[0]
    assert '"a dog in ink"' in found[0]
    assert "style LoRA (ink style, szn)" in found[1]
    assert [*without_trigger([lora(), lora()], prompts)] == []


def test_stamps_of_nothing() -> None:
    from lorabake.compare.baking import stamp

    assert stamp("user/repo") == []
    assert stamp(Path(__file__))[0][1:] == [
        Path(__file__).stat().st_size, Path(__file__).stat().st_mtime_ns
    ]  # fmt: skip
