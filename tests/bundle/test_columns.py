"""Column coefficients (ZipLoRA), from the factors to the file and back."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lorabake
from lorabake import lora
from lorabake.bundle import compare, complete, describe, strengthen, verify, with_columns, write
from lorabake.bundle.deviation import deviation
from lorabake.bundle.fold import fold
from lorabake.bundle.stack import stack
from lorabake.errors import BundleError, OutputError, VerifyError
from lorabake.lora import LayerName, LowRank, Pair
from lorabake.runtime.manifest import Layer, Manifest, Source
from lorabake.runtime.plan import Constant

from ..oracle import Shapes, write_lora
from .baked import Coefficients, baked, drawn

f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = [f16, bf16, f32]
KERNELS: list[tuple[int, ...]] = [(), (3, 3)]
LEAST = 2.0**-10


def lowrank(
    shape: tuple[int, ...],
    rank: int,
    seed: int,
    dtype: torch.dtype = f32,
    scale: float = 1.0,
    b: float = 1e-3,
) -> LowRank:
    """Factors of the sizes that real LoRAs have."""
    g = torch.Generator().manual_seed(seed)
    out, width, *kernel = shape
    down = torch.randn(rank, width, *kernel, generator=g) * 1e-2
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=g) * b
    return LowRank(down.to(dtype), up.to(dtype), scale)


def dense(source: LowRank, m: Tensor | None = None) -> Tensor:
    """scale · B · A, column for column times m, in float64."""
    out, (_, width, *kernel) = source.up.shape[0], source.down.shape
    product = source.up.double().reshape(out, -1) @ source.down.double().reshape(source.rank, -1)
    update = source.scale * product.reshape(out, width, *kernel)
    if m is not None:
        for j in range(width):
            update[:, j] *= float(m[j])
    return update


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def product(stored: tuple[Tensor, Tensor]) -> Tensor:
    return dense(LowRank(*stored))


def spread(width: int, dtype: torch.dtype, seed: int = 9) -> Tensor:
    """Magnitudes from 2^-10 to 2, both signs, exact in the dtype."""
    g = torch.Generator().manual_seed(seed)
    m = 2.0 ** (torch.rand(width, generator=g) * 11 - 10) * torch.randn(width, generator=g).sign()
    m[3] = LEAST
    m = m.to(dtype).float()
    return torch.where(m.abs() < LEAST, LEAST * m.sign(), m)


PAIRS = (
    Pair(
        LayerName("text_encoder", "text_model.encoder.layers.0.self_attn.out_proj"),
        lowrank((24, 24), 2, 0), lowrank((24, 24), 3, 1),
    ),
    Pair(
        LayerName("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        lowrank((16, 24), 2, 2, scale=0.3), lowrank((16, 24), 3, 3),
    ),
    Pair(LayerName("unet", "down_blocks.0.resnets.0.conv1"),
        lowrank((8, 6, 3, 3), 4, 4), lowrank((8, 6, 3, 3), 2, 5, scale=4.0)),
    Pair(LayerName("unet", "mid_block.resnets.0.conv1"), None, lowrank((8, 6, 3, 3), 2, 6)),
    Pair(LayerName("unet", "up_blocks.0.resnets.0.conv1"),
        lowrank((8, 6, 3, 3), 1, 7), lowrank((8, 6, 3, 3), 2, 8)),
)  # fmt: skip
M: Coefficients = [None, *drawn(PAIRS)[1:4], None]
"""For two layers of the UNet; not for the text encoder, nor for its last convolution."""


def weighted(dtype: torch.dtype) -> tuple[Pair, ...]:
    return with_columns(PAIRS, M, dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_folding(dtype: torch.dtype, scale: float, kernel: tuple[int, ...]) -> None:
    plain = lowrank((32, 48, *kernel), 8, 0, scale=scale)
    m = spread(48, dtype)
    source = replace(plain, columns=m)
    wanted = dense(plain, m)
    assert error(source.delta(f64), wanted) <= 1e-14
    found = fold(source, dtype)
    assert {t.dtype for t in found} == {dtype}
    # Half a unit in the last place of A' and another one of B'.
    assert error(product(found), wanted) <= (1e-6 if dtype == f32 else torch.finfo(dtype).eps)
    found_deviation = deviation(found, source)
    assert found_deviation.error <= found_deviation.allowed
    assert found_deviation.relative >= error(product(found), wanted) * 0.999


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("kernel", KERNELS)
def test_ones_change_nothing(dtype: torch.dtype, scale: float, kernel: tuple[int, ...]) -> None:
    sources = [lowrank((16, 24, *kernel), r, r, dtype, scale) for r in (2, 3)]
    plain = stack(sources, 8, dtype)
    ones = stack([replace(s, columns=torch.ones(24)) for s in sources], 8, dtype)
    assert torch.equal(ones[1], plain[1])
    assert torch.equal(ones[0][:5], plain[0][:5])
    assert torch.equal(ones[0][5:7], torch.ones(2, 24, *kernel, dtype=dtype))
    assert not ones[0][7:].any()


def test_what_is_not_multiplied_is_no_copy() -> None:
    source = replace(lowrank((16, 24), 2, 0), columns=spread(24, f32))
    found = deviation((source.down, source.up), source)
    assert found.error > found.allowed


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_coefficients_are_stored(dtype: torch.dtype) -> None:
    given = torch.tensor([1.0, 0.0, -0.0, 1e-9, -1e-9, LEAST, -LEAST, LEAST * 0.9, -1 / 3, 1.2345])
    stored = torch.tensor([1.0, *[LEAST] * 3, -LEAST, LEAST, -LEAST, LEAST, 0.0, 0.0])
    stored[-2:] = given[-2:].to(dtype).float()
    plain = Pair(LayerName("unet", "a"), lowrank((4, 10), 2, 0), lowrank((4, 10), 1, 1))
    (pair,) = with_columns([plain], [(given, given.flip(0))], dtype)
    assert pair.columns
    assert pair.content is not None
    assert pair.style is not None
    for source, wanted in ((pair.content, stored), (pair.style, stored.flip(0))):
        assert source.columns is not None
        assert source.columns.dtype == f32
        assert torch.equal(source.columns, wanted)
    # Once more changes nothing; None leaves a pair alone.
    again = with_columns([pair], [(stored, stored.flip(0))], dtype)[0]
    assert again.content is not None
    assert again.content.columns is not None
    assert torch.equal(again.content.columns, stored)
    assert with_columns([plain], [None], dtype) == (plain,)
    assert not plain.columns


def test_coefficients_that_do_not_fit() -> None:
    both = Pair(LayerName("unet", "a"), lowrank((4, 10), 2, 0), lowrank((4, 10), 1, 1))
    one, m = replace(both, content=None), torch.ones(10)
    with pytest.raises(ValueError, match=r"unet\.a: only one LoRA has this layer"):
        with_columns([one], [(m, m)], f32)
    with pytest.raises(ValueError, match=r"unet\.a: coefficients \[9\] for ΔW \[4, 10\]"):
        with_columns([both], [(m, m[1:])], f32)
    for odd in (float("nan"), float("inf"), 1e6):
        with pytest.raises(OutputError, match=r"unet\.a: .*not finite as float16"):
            with_columns([both], [(m, m * odd)], f16)
    with pytest.raises(ValueError, match="differ in column coefficients"):
        write_as(both, columns=True)


def write_as(pair: Pair, columns: bool) -> bytes:
    layer = Layer(*pair.name, "A", "B", pair.ranks, Constant((1.0, 1.0)), columns)
    return written([pair], [layer], f32)


def written(pairs: list[Pair], layers: list[Layer], dtype: torch.dtype) -> bytes:
    sources = tuple(Source(r, r, "0" * 64, 1.0, (), None, None) for r in ("content", "style"))
    manifest = Manifest("direct", {}, "sd15", None, sources, tuple(layers), None, "0" * 64)
    file = io.BytesIO()
    write(file, manifest, pairs, dtype, metadata={"a": "b"})
    return file.getvalue()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rows_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    pairs = weighted(dtype)
    path = baked(tmp_path / "b.safetensors", pairs, dtype)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["lorabake"])
    assert manifest["format"] == "1.1"
    assert [layer.get("columns") for layer in manifest["layers"]] == [None, True, True, None, None]
    for entry, pair in zip(manifest["layers"], pairs, strict=True):
        down, up = tensors[entry["down"]], tensors[entry["up"]]
        start = sum(entry["ranks"])
        assert down.shape[0] == up.shape[1] == (5 if entry["component"] == "text_encoder" else 8)
        assert not up[:, start:].any()
        if not pair.columns:
            assert not down[start:].any()
            continue
        assert not down[start + 2 :].any()
        for row, source in enumerate(pair.loras):
            assert source is not None
            assert source.columns is not None
            for kernel in down[start + row].float().reshape(down.shape[1], -1).unbind(1):
                assert torch.equal(kernel, source.columns)


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    pairs = weighted(dtype)
    bundle = lorabake.load(baked(tmp_path / "b.safetensors", pairs, dtype))
    bundle.verify()
    found = bundle.coefficients()
    assert list(found) == [str(pair.name) for pair in PAIRS[1:3]]
    allowed = 1e-6 if dtype == f32 else 2 * torch.finfo(dtype).eps
    for layer, pair, plain in zip(bundle.manifest.layers, pairs, PAIRS, strict=True):
        for i, (source, before) in enumerate(zip(pair.loras, plain.loras, strict=True)):
            if source is None or before is None:
                continue
            if source.columns is not None:
                assert torch.equal(found[str(layer)][i], source.columns)
            assert error(product(bundle.factors(layer, i)), dense(before, source.columns)) < allowed
            original = bundle.original(layer, i)
            assert {t.dtype for t in original} == {f32}
            assert error(product(original), dense(before)) < allowed
    checks = compare(bundle.path, pairs)
    assert checks.compared == 9
    with pytest.raises(VerifyError, match=r"attn1.to_q has other column coefficients"):
        compare(bundle.path, PAIRS)


@pytest.mark.parametrize("source_dtype", [f16, f32])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_originals_can_be_had_back(
    dtype: torch.dtype, kernel: tuple[int, ...], source_dtype: torch.dtype
) -> None:
    """Each column of A, also under the smallest coefficient, as well as the dtype can hold it."""
    plain = lowrank((64, 96, *kernel), 8, 0, source_dtype)
    for m in (spread(96, dtype), torch.full((96,), LEAST), torch.ones(96)):
        down, up = fold(replace(plain, columns=m), dtype)
        back = down.double() / m.double().reshape(-1, *(1 for _ in kernel))
        wanted = plain.down.double()
        back = back * 2.0 ** round(float(torch.log2(wanted.norm() / back.norm())))
        columns = ((back - wanted).transpose(0, 1).flatten(1), wanted.transpose(0, 1).flatten(1))
        worst = (columns[0].norm(dim=1) / columns[1].norm(dim=1)).max()
        # One rounding of each entry, and for float16 the steps near zero.
        assert float(worst) <= torch.finfo(dtype).eps * (0.75 if dtype == f16 else 0.5)
        assert error(product((down, up)), dense(plain, m)) <= torch.finfo(dtype).eps


def test_small_factors_keep_the_update_rather_than_the_original() -> None:
    for size in (1e-4, 1e-5):
        plain = lowrank((64, 96), 8, 0, b=size)
        m = spread(96, f16)
        assert error(product(fold(replace(plain, columns=m), f16)), dense(plain, m)) <= 5e-4


def ramp(*shape: int, step: float) -> Tensor:
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 % 31 - 15) * step).reshape(shape)


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        (f16, "4a38c06787e0f684b1091fa21500be783b1a21bb43ed73c99c3321badaa078e1"),
        (bf16, "344f13dc26493c971e0f0aeeff7e40e0a11605f57a81ea28c3e43cf0573b8fac"),
        (f32, "0bb56c47d2951534f1b8f5ce98939f09b93b399f4f5cb353a61695d8675c43ef"),
    ],
)
def test_without_coefficients_the_bytes_are_those_of_format_1_0(
    dtype: torch.dtype, digest: str
) -> None:
    """The digests are of files that a version wrote which knew 1.0 only."""
    pairs = [
        Pair(
            LayerName("text_encoder", "q"),
            LowRank(ramp(2, 6, step=0.25), ramp(4, 2, step=0.5)),
            None,
        ),
        Pair(
            LayerName("unet", "a"),
            LowRank(ramp(2, 6, step=0.125), ramp(4, 2, step=2.0), 0.3),
            LowRank(ramp(3, 6, step=1.0), ramp(4, 3, step=0.01)),
        ),
        Pair(
            LayerName("unet", "b"),
            LowRank(ramp(1, 3, 3, 3, step=0.125), ramp(5, 1, 1, 1, step=2.0), 3.0),
            LowRank(ramp(2, 3, 3, 3, step=1.0), ramp(5, 2, 1, 1, step=0.01), 0.7),
        ),
    ]
    layers = [
        Layer(*pair.name, f"{pair.name}.A", f"{pair.name}.B", pair.ranks, Constant((1.0, 1.0)))
        for pair in pairs
    ]
    assert hashlib.sha256(written(pairs, layers, dtype)).hexdigest() == digest


SHAPES: Shapes = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (16, 24),
    "unet.mid_block.resnets.0.conv1": (16, 16, 3, 3),
    "unet.up_blocks.0.resnets.0.conv1": (16, 16, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (24, 24),
}
STRENGTHS = (0.6, 2.0)


def made(folder: Path, dtype: torch.dtype) -> tuple[Path, Path, Path]:
    """Content, style, and a bundle of them; no out_proj, so that the bundle gets an empty one."""
    content, style = folder / "cat.safetensors", folder / "ink.safetensors"
    write_lora(content, SHAPES, "kohya", 3, keep=1.0)
    write_lora(style, {k: v for k, v in SHAPES.items() if "up_" not in k}, "peft", 4, keep=1.0)
    pairs = strengthen(complete(lora.pair(*lora.read_both(content, style))), STRENGTHS)
    m = [
        x if p.name.component == "unet" else None for x, p in zip(drawn(pairs), pairs, strict=True)
    ]
    pairs = with_columns(pairs, m, dtype)
    return content, style, baked(folder / "b.safetensors", pairs, dtype, strengths=STRENGTHS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_its_sources(tmp_path: Path, dtype: torch.dtype) -> None:
    content, style, out = made(tmp_path, dtype)
    assert len(lorabake.load(out).coefficients()) == 3
    checks = verify(out, (content, style))
    assert checks.compared == 11
    assert checks.worst_error <= 2 * torch.finfo(dtype).eps
    assert verify(out).compared == 0


def resaved(path: Path, edit: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """As another tool would save it, under the digest that is right then."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors, manifest = load_file(path), json.loads(metadata["lorabake"])
    edit(tensors, manifest)
    for _ in range(2):  # the digest is of the data alone
        save_file(tensors, path, {**metadata, "lorabake": json.dumps(manifest)})
        raw = path.read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        manifest["digest"] = hashlib.sha256(data).hexdigest()


def changed(row: int, factor: float) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    """One entry of attn1.to_q's stack, counted from the row of m_c."""

    def edit(tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
        (layer,) = (x for x in manifest["layers"] if x["module"].endswith("to_q"))
        tensors[layer["down"]][sum(layer["ranks"]) + row, 5] *= factor

    return edit


def unmarked(_: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    for layer in manifest["layers"]:
        layer.pop("columns", None)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed(0, 1.5), "differs from the content LoRA"),
        (changed(1, -1), "differs from the style LoRA"),
        (changed(-1, 1.5), "differs from the style LoRA"),
        (changed(0, 1e-6), "other column coefficients"),  # smaller than they may be
        (changed(0, 0), "0 or not finite"),
        (unmarked, "differs from the content LoRA"),
    ],
)
@pytest.mark.parametrize("dtype", [f16, f32])
def test_what_was_changed_is_found(
    tmp_path: Path, dtype: torch.dtype, edit: Any, message: str
) -> None:
    content, style, out = made(tmp_path, dtype)
    resaved(out, lambda tensors, manifest: None)
    verify(out, (content, style))
    resaved(out, edit)
    with pytest.raises(BundleError, match=message):
        verify(out, (content, style))


def test_a_zero_is_found_without_the_sources(tmp_path: Path) -> None:
    out = made(tmp_path, f32)[2]
    resaved(out, changed(1, 0))
    with pytest.raises(BundleError, match=r"attn1\.to_q has column coefficients that are 0"):
        verify(out)


def test_coefficients_of_another_width(tmp_path: Path) -> None:
    _, _, out = made(tmp_path, f32)
    narrow = {name: (16, 12) if name.endswith("to_q") else shape for name, shape in SHAPES.items()}
    others = tmp_path / "a.safetensors", tmp_path / "s.safetensors"
    write_lora(others[0], narrow, "kohya", 3, keep=1.0)
    write_lora(others[1], {k: v for k, v in narrow.items() if "up_" not in k}, "peft", 4, keep=1.0)
    with pytest.raises(BundleError, match=r"column coefficients do not fit: unet.mid.*attn1.to_q"):
        verify(out, others)


def test_described(tmp_path: Path) -> None:
    bundle = lorabake.load(baked(tmp_path / "b.safetensors", weighted(f32)))
    found = describe(bundle)
    assert found["format"] == "1.1"
    assert [entry["coefficients"] is None for entry in found["layers"]] == [
        True, False, False, True, True,
    ]  # fmt: skip
    for entry in found["layers"][1:3]:
        m_c, m_s = bundle.coefficients()[f"{entry['component']}.{entry['module']}"]
        pairs = list(zip(m_c.tolist(), m_s.tolist(), strict=True))
        assert entry["coefficients"] == {
            "content": pytest.approx(sum(c for c, _ in pairs) / len(pairs)),
            "style": pytest.approx(sum(s for _, s in pairs) / len(pairs)),
            "product": pytest.approx(sum(abs(c * s) for c, s in pairs) / len(pairs)),
        }
    json.dumps(found)


def test_coefficients_outlast_strengths_and_completion() -> None:
    name = LayerName("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
    plain = Pair(name, lowrank((24, 24), 2, 0), lowrank((24, 24), 3, 1))
    m_c, m_s = spread(24, f32, seed=1), spread(24, f32, seed=2)
    pairs = complete(strengthen(with_columns([plain], [(m_c, m_s)], f32), (0.5, 3.0)))
    empty = [pair for pair in pairs if pair.name != name]
    assert [pair.columns for pair in empty] == [False]
    (pair,) = (pair for pair in pairs if pair.name == name)
    for source, before, m, strength in zip(
        pair.loras, plain.loras, (m_c, m_s), (0.5, 3.0), strict=True
    ):
        assert source is not None
        assert before is not None
        assert error(source.delta(f64), strength * dense(before, m)) <= 1e-14
