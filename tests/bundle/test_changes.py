"""Other tools save a bundle again: what they did is told, and whether the plan outlives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorabake
from lorabake import lora
from lorabake.bundle import complete, verify, with_columns
from lorabake.errors import BundleError

from ..oracle import Shapes, write_lora
from .baked import baked, drawn

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
SHAPES: Shapes = {
    f"{BLOCK}.attn1.to_q": (16, 16),
    f"{BLOCK}.attn2.to_k": (16, 24),
    f"{BLOCK}.ff.net.2": (16, 64),
    "unet.mid_block.resnets.0.conv1": (16, 16, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj": (24, 24),
}
Paths = tuple[Path, Path, Path]
Tensors = dict[str, Tensor]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    content, style = tmp_path / "cat.safetensors", tmp_path / "ink.safetensors"
    write_lora(content, SHAPES, "kohya", 8, keep=1.0)
    write_lora(style, SHAPES, "peft", 9, keep=1.0)
    out = tmp_path / "bundle.safetensors"
    lorabake.make(content, style, out, style_strength=2.0)
    return content, style, out


def resave(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write changed tensors under the same metadata, as another tool would."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = change({key: tensor.clone() for key, tensor in load_file(path).items()})
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)


def downs(tensors: Tensors) -> list[str]:
    return [key for key in tensors if "lora_down" in key]


def refactored(tensors: Tensors, rank: Callable[[int], int], *, alpha: bool) -> Tensors:
    """Each layer by an SVD, cut at `rank` of its number, as kohya's resize does it."""
    for i, key in enumerate(downs(tensors)):
        key_up = key.replace("lora_down", "lora_up")
        down, up = tensors[key], tensors[key_up]
        u, s, vh = torch.linalg.svd(up.flatten(1) @ down.flatten(1), full_matrices=False)
        cut = rank(i)
        more = torch.zeros(max(0, cut - len(s)))  # where the rank grows
        u = torch.cat([u * s, more.expand(len(u), -1)], 1)[:, :cut]
        vh = torch.cat([vh, more[:, None].expand(-1, vh.shape[1])])[:cut]
        tensors[key] = vh.reshape(cut, *down.shape[1:])
        tensors[key_up] = u.reshape(up.shape[0], cut, *up.shape[2:])
        if alpha:
            tensors[key.replace("lora_down.weight", "alpha")] = torch.tensor(float(cut))
    return tensors


def shuffled(tensors: Tensors) -> Tensors:
    for key in downs(tensors):
        key_up = key.replace("lora_down", "lora_up")
        order = torch.randperm(len(tensors[key]), generator=torch.Generator().manual_seed(1))
        tensors |= {key: tensors[key][order], key_up: tensors[key_up][:, order]}
    return tensors


def renamed(tensors: Tensors) -> Tensors:
    swap = {"lora_down": "lora_A", "lora_up": "lora_B"}
    return {f"x.{key}".replace(old, swap[old]): tensor
            for key, tensor in tensors.items() for old in swap if old in key}  # fmt: skip


def merged(tensors: Tensors) -> Tensors:
    key = next(key for key in sorted(tensors) if "attn2" in key and "lora_up" in key)
    return tensors | {key: tensors[key] * 1.5}


def beside(tensors: Tensors, *, appended: bool) -> Tensors:
    """A third LoRA of rank 1 in more ranks, or in those that nobody uses."""
    for key in downs(tensors):
        key_up = key.replace("lora_down", "lora_up")
        if appended:
            tensors[key] = torch.cat([tensors[key], torch.ones_like(tensors[key][:1])])
            more = torch.ones_like(tensors[key_up][:, :1])
            tensors[key_up] = torch.cat([tensors[key_up], more], 1)
        elif not tensors[key_up][:, -1].any():
            tensors[key][-1], tensors[key_up][:, -1] = 1.0, 1.0
    return tensors


def told(path: Path, against: tuple[Path, Path] | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        verify(path, against)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


LAYOUT: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "resized": (
        lambda t: refactored(t, lambda i: 3, alpha=True),
        "another tool has changed it: the layers of text_encoder were resized from rank {te} to 3; "
        "the layers of unet were resized from rank {unet} to 3; alpha tensors were added",
    ),
    "resized by layer": (
        lambda t: refactored(t, lambda i: 2 + i, alpha=False),
        "the layers of unet were resized from rank {unet} to ",
    ),
    "alphas": (
        lambda t: t | {k.replace("lora_down.weight", "alpha"): torch.ones(()) for k in downs(t)},
        "another tool has changed it: alpha tensors were added.",
    ),
    "renamed": (
        renamed,
        "tensors of 5 of 5 layers have other names, such as x.lora_te_text_model",
    ),
    "removed": (
        lambda t: {k: v for k, v in t.items() if "attn" not in k or "self_attn" in k},
        f"2 of 5 layers were removed: {BLOCK}.attn1.to_q, {BLOCK}.attn2.to_k.",
    ),
    "added": (
        lambda t: t | {"note": torch.ones(1)},
        "tensors were added that its manifest does not know: note.",
    ),
}


@pytest.mark.parametrize("case", LAYOUT)
def test_names_and_ranks(paths: Paths, case: str) -> None:
    *sources, out = paths
    change, wanted = LAYOUT[case]
    layers = lorabake.load(out).manifest.layers
    unet, te = (max(sum(x.ranks) for x in layers if x.component == c)
                for c in ("unet", "text_encoder"))  # fmt: skip
    resave(out, change)
    for against in (None, (sources[0], sources[1])):
        message = told(out, against)
        assert wanted.format(unet=unet, te=te) in message
        assert "It is a plain LoRA now: make the bundle again" in message


def test_without_its_manifest(paths: Paths) -> None:
    out = paths[2]
    save_file(load_file(out), out, {"format": "pt"})
    message = told(out)
    assert "this is an ordinary LoRA, not a bundle" in message
    assert "its plan is lost: make it again, or load it like any other LoRA" in message
    with pytest.raises(BundleError, match="its plan is lost"):
        lorabake.load(out)


NUMBERS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "shuffled": (shuffled, "5 of 5 layers the ranks are in another order: the sum of both LoRAs"),
    "svd": (
        lambda t: refactored(t, lambda i: 99, alpha=False),
        "5 of 5 layers were factored anew, as by an SVD",
    ),
    "merged": (merged, f"1 of 5 layers hold other weights, such as {BLOCK}.attn2.to_k: it was"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(paths: Paths, case: str) -> None:
    content, style, out = paths
    change, wanted = NUMBERS[case]
    ranks = {key: len(tensor) for key, tensor in load_file(out).items() if "lora_down" in key}

    def same_rank(tensors: Tensors) -> Tensors:
        made = change(tensors)
        for key, rank in ranks.items():
            made[key] = made[key][:rank]
            up = key.replace("lora_down", "lora_up")
            made[up] = made[up][:, :rank]
        return made

    resave(out, same_rank)
    lorabake.load(out)  # it still reads as a bundle
    message = told(out, (content, style))
    assert "the digest differs" in message
    assert wanted in message
    assert "It is a plain LoRA now" in message
    alone = told(out)
    assert "the digest differs" in alone
    assert ("shuffled or added to, or factored anew by an SVD" in alone) == (case != "merged")
    assert ("only saved in another precision (float32 now)" in alone) == (case == "merged")


@pytest.mark.parametrize(
    ("appended", "wanted"), [(True, "the layers of unet were resized"), (False, "merged with")]
)
def test_a_third_lora_beside_them(paths: Paths, appended: bool, wanted: str) -> None:
    content, style, out = paths
    resave(out, lambda tensors: beside(tensors, appended=appended))
    lorabake.load(out)  # both are where they were
    assert wanted in told(out, (content, style))
    assert "It is a plain LoRA now" in told(out)


def test_once_rounded_numbers_in_a_wide_dtype(paths: Paths) -> None:
    content, style, out = paths
    raw = out.read_bytes()
    for path in (torch.float16, torch.float32), (torch.bfloat16, torch.float16):
        out.write_bytes(raw)
        resave(out, lambda tensors, path=path: {k: t.to(path[0]).to(path[1])
                                                for k, t in tensors.items()})  # fmt: skip
        told(out)
        assert verify(out, (content, style)).resaved == str(path[1]).removeprefix("torch.")
    out.write_bytes(raw)
    resave(out, lambda tensors: {k: t.half() if "attn" in k else t for k, t in tensors.items()})
    assert verify(out, (content, style)).compared == 10
    resave(out, merged)
    assert "1 of 5 layers hold other weights" in told(out, (content, style))


def test_numbers_that_are_none(paths: Paths) -> None:
    content, style, out = paths
    resave(out, lambda tensors: {key: tensor / 0 for key, tensor in tensors.items()})
    assert "tensors hold NaN or infinity" in told(out, (content, style))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["klora", "direct", "ziplora"])
def test_a_narrower_dtype_keeps_the_plan(paths: Paths, method: str, dtype: torch.dtype) -> None:
    content, style, out = paths
    if method == "direct":
        lorabake.make(content, style, out, method="direct", w_c=0.3, force=True)
    elif method == "ziplora":
        pairs = complete(lora.pair(*lora.read_both(content, style)))
        baked(out, with_columns(pairs, drawn(pairs), torch.float32))
    resave(out, lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()})
    name = str(dtype).removeprefix("torch.")
    assert f"only saved in another precision ({name} now), the plan still holds" in told(out)
    checks = verify(out, (content, style))
    assert (checks.resaved, checks.compared) == (name, 10)
    assert 1e-4 < checks.worst_error < 0.02
    assert f"5 layers, saved again in {name}, its plan holds; all 10 updates" in str(checks)


def test_a_wider_dtype_is_known_without_the_sources(paths: Paths) -> None:
    content, style, out = paths
    for stored in ("float16", "bfloat16"):
        lorabake.make(content, style, out, dtype=stored, force=True)
        resave(out, lambda tensors: {key: tensor.float() for key, tensor in tensors.items()})
        assert verify(out).resaved == "float32"
        assert verify(out, (content, style)).resaved == "float32"
        resave(out, merged)
        told(out)


def test_another_order_of_the_tensors_is_no_change(paths: Paths) -> None:
    content, style, out = paths
    raw = out.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:size]), b""
    for key in sorted(header, reverse=True):
        if key != "__metadata__":
            start, end = header[key]["data_offsets"]
            header[key]["data_offsets"] = [len(data), len(data) + end - start]
            data += raw[size + start : size + end]
    text = json.dumps(header).encode()
    out.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert data != raw[size:]
    assert "undamaged" in str(verify(out))
    assert verify(out, (content, style)).worst_error < 1e-6


def test_sources_of_other_shapes(paths: Paths, tmp_path: Path) -> None:
    out = paths[2]
    wide = {name: (out + 8, *rest) for name, (out, *rest) in SHAPES.items()}
    others = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for path, source, dialect in zip(others, (8, 9), ("kohya", "peft"), strict=True):
        write_lora(path, wide, dialect, source, keep=1.0)
    for change in (lambda t: t, merged):
        resave(out, change)
        assert "its layers or ranks are not those of the two LoRAs" in told(out, others)
