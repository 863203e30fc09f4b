"""LoHa, LoKr, Tucker and full differences, against dense updates made as their papers say."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorabake.errors import LoraFileError, RecipeError, UnsupportedLoraError
from lorabake.lora import LayerName, Lora, LowRank, read

from . import tables

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
LINEAR, CONV, PROJ = BLOCK, "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"
OUT, IN, R, ALPHA = 12, 10, 2, 3.0
Tensors = dict[str, Tensor]
Case = tuple[str, Tensors, Tensor]
"""A module of the UNet, its tensors by the ends of their keys, and the dense ΔW."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def key(module: str, end: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}.{end}"


def named(module: str, tensors: Tensors) -> Tensors:
    return {key(module, end): tensor.contiguous() for end, tensor in tensors.items()}


def written(path: Path, module: str, tensors: Tensors) -> Path:
    """A file with this module and the cross-attention that shows SD 1.5."""
    mark = BLOCK.replace("attn1.to_q", "attn2.to_k")
    plain = {"lora_down.weight": drawn(2, 768), "lora_up.weight": drawn(8, 2)}
    return tables.save(path, named(mark, plain) | named(module, tensors))


def alpha(value: float = ALPHA) -> Tensors:
    return {"alpha": torch.tensor(value)}


def tucker(out: int = OUT) -> Case:
    down, mid, up = drawn(R, IN, 1, 1), drawn(R, R, 3, 3), drawn(out, R, 1, 1)
    dense = torch.einsum("or,rqhw,qi->oihw", up[..., 0, 0].double(), mid.double(),
                         down[..., 0, 0].double())  # fmt: skip
    ends = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return CONV, ends | alpha(), ALPHA / R * dense


def loha(module: str, shape: tuple[int, ...]) -> Case:
    width = math.prod(shape[1:])
    ends = {
        "hada_w1_a": drawn(OUT, R), "hada_w1_b": drawn(R, width),
        "hada_w2_a": drawn(OUT, R) + 1, "hada_w2_b": drawn(R, width) - 1,
    }  # fmt: skip
    a, b, c, d = (t.double() for t in ends.values())
    return module, ends | alpha(), (ALPHA / R * (a @ b) * (c @ d)).reshape(shape)


def loha_tucker() -> Case:
    ends = {
        "hada_t1": drawn(R, R, 3, 3), "hada_w1_a": drawn(R, OUT), "hada_w1_b": drawn(R, 40),
        "hada_t2": drawn(R, R, 3, 3) + 1, "hada_w2_a": drawn(R, OUT) - 1, "hada_w2_b": drawn(R, 40),
    }  # fmt: skip
    t1, a1, b1, t2, a2, b2 = (t.double() for t in ends.values())
    one = torch.einsum("pqhw,po,qi->oihw", t1, a1, b1)
    return CONV, ends | alpha(), ALPHA / R * one * torch.einsum("pqhw,po,qi->oihw", t2, a2, b2)


def lokr(
    first: bool, second: bool, module: str = LINEAR, kernel: tuple[int, ...] = (),
    wide: tuple[int, int] = (40, 50), scale: float = 0,
) -> Case:  # fmt: skip
    """W1 `[3, 2]` and W2 `[40, 50, …]`, each whole or as a product."""
    ends = alpha()
    (b, d), w1 = wide, drawn(3, 2).double()
    if first:
        ends["lokr_w1"] = w1.float()
    else:
        ends |= {"lokr_w1_a": drawn(3, R), "lokr_w1_b": drawn(R, 2)}
        w1 = ends["lokr_w1_a"].double() @ ends["lokr_w1_b"].double()
    if second:
        ends["lokr_w2"] = drawn(b, d, *kernel)
        w2 = ends["lokr_w2"].double()
    else:
        ends |= {"lokr_w2_a": drawn(b, R), "lokr_w2_b": drawn(R, d * math.prod(kernel))}
        w2 = ends["lokr_w2_a"].double() @ ends["lokr_w2_b"].double()
        w2 = w2.reshape(b, d, *kernel)
    dense = torch.einsum("ac,bd...->abcd...", w1, w2).reshape(3 * b, 2 * d, *kernel)
    return module, ends, (scale or ALPHA / R) * dense


def lokr_tucker() -> Case:
    ends = {
        "lokr_w1": drawn(3, 2), "lokr_t2": drawn(R, R, 3, 3), "lokr_w2_a": drawn(R, 40),
        "lokr_w2_b": drawn(R, 50),
    }  # fmt: skip
    w1, t2, a, b = (t.double() for t in ends.values())
    w2 = torch.einsum("pqhw,po,qi->oihw", t2, a, b)
    dense = torch.einsum("ac,bdhw->abcdhw", w1, w2).reshape(120, 100, 3, 3)
    return CONV, ends | alpha(), ALPHA / R * dense


def diff(module: str, *shape: int) -> Case:
    return module, {"diff": drawn(*shape)}, drawn(*shape).double()


CASES: dict[str, Callable[[], Case]] = {
    "Tucker": tucker,
    "LoHa": partial(loha, LINEAR, (OUT, IN)),
    "LoHa 3×3": partial(loha, CONV, (OUT, IN, 3, 3)),
    "LoHa 1×1": partial(loha, PROJ, (OUT, IN, 1, 1)),
    "LoHa Tucker": loha_tucker,
    "LoKr whole, product": partial(lokr, True, False),
    "LoKr product, product": partial(lokr, False, False),
    "LoKr whole, product, 3×3": partial(lokr, True, False, CONV, (3, 3)),
    "LoKr whole, product, 1×1": partial(lokr, True, False, PROJ, (1, 1)),
    "LoKr whole, whole, 3×3": partial(lokr, True, True, CONV, (3, 3), scale=1),
    "LoKr Tucker": lokr_tucker,
}
SMALL: dict[str, Callable[[], Case]] = {
    "LoKr whole, whole": partial(lokr, True, True, scale=1),
    "diff": partial(diff, LINEAR, OUT, IN),
    "diff tall": partial(diff, LINEAR, 40, 6),
    "diff 3×3": partial(diff, CONV, OUT, IN, 3, 3),
    "diff 3×3 narrow": partial(diff, CONV, 40, 2, 3, 3),
    "LoHa of more ranks than columns": partial(loha, LINEAR, (OUT, 3)),
    "Tucker of more ranks than rows": partial(tucker, 1),
    "LoKr of more ranks than columns": partial(lokr, False, False, wide=(40, 1)),
}
LARGE: dict[str, Callable[[], Case]] = {
    "LoKr whole, whole": partial(lokr, True, True, wide=(135, 136), scale=1),
    "LoKr product, whole": partial(lokr, False, True, wide=(135, 136)),
    "diff": partial(diff, LINEAR, 270, 260),
    "diff 3×3": partial(diff, CONV, 260, 40, 3, 3),
}


def layer(lora: Lora, module: str) -> LowRank:
    return lora.layers[LayerName("unet", module)]


@pytest.mark.parametrize("name", CASES | SMALL)
def test_exact(name: str, tmp_path: Path) -> None:
    module, tensors, dense = (CASES | SMALL)[name]()
    lora = read(written(tmp_path / "a.safetensors", module, tensors))
    found = layer(lora, module)
    assert found.shape == dense.shape
    torch.testing.assert_close(found.delta(torch.float64), dense, rtol=1e-5, atol=1e-5)
    (done,) = lora.conversions
    assert done.layers == (LayerName("unet", module),)
    assert done.kind == name.split()[0]
    assert (done.error, done.rank) == (0.0, done.exact_rank)
    assert found.rank == done.rank <= min(dense.shape[0], dense[0].numel())
    assert done.norm == pytest.approx(float(dense.norm()), rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_without_alpha_the_scale_is_1(name: str, tmp_path: Path) -> None:
    module, tensors, dense = CASES[name]()
    tensors.pop("alpha")
    lora = read(written(tmp_path / "a.safetensors", module, tensors))
    wanted = dense if "whole, whole" in name else dense * R / ALPHA
    torch.testing.assert_close(
        layer(lora, module).delta(torch.float64), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", LARGE)
def test_what_has_no_modest_rank_needs_one(name: str, tmp_path: Path) -> None:
    module, tensors, dense = LARGE[name]()
    path = written(tmp_path / "a.safetensors", module, tensors)
    with pytest.raises(UnsupportedLoraError, match="--svd-rank 64") as caught:
        read(path)
    assert f"1 of its 2 layers ({name.split()[0]})" in str(caught.value)
    full = int(torch.linalg.matrix_rank(dense.flatten(1)))
    assert f"would need rank {full}" in str(caught.value)
    lora = read(path, svd_rank=full)
    assert layer(lora, module).rank == full
    torch.testing.assert_close(
        layer(lora, module).delta(torch.float64), dense, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", CASES | SMALL | LARGE)
@pytest.mark.parametrize("rank", [1, 3])
def test_nearest(name: str, rank: int, tmp_path: Path) -> None:
    module, tensors, dense = (CASES | SMALL | LARGE)[name]()
    path = written(tmp_path / "a.safetensors", module, tensors)
    lora = read(path, svd_rank=rank)
    found, (done,) = layer(lora, module), lora.conversions
    spectrum = torch.linalg.svdvals(dense.flatten(1))
    lost = float(spectrum[rank:].norm() / spectrum.norm())
    away = float((found.delta(torch.float64) - dense).norm() / dense.norm())
    assert found.shape == dense.shape
    if done.exact_rank <= rank:
        assert (done.rank, done.error) == (done.exact_rank, 0.0)
        assert away < 1e-6
        return
    assert (found.rank, done.rank) == (rank, rank)
    assert away == pytest.approx(lost, rel=1e-5, abs=1e-6)
    assert done.error == pytest.approx(lost, rel=1e-5, abs=1e-6)
    assert done.norm == pytest.approx(float(dense.norm()), rel=1e-5)
    assert float(found.down.flatten(1).gather(1, _peaks(found)).min()) > 0
    again = layer(read(path, svd_rank=rank), module)
    assert again.down.equal(found.down)


def _peaks(of: LowRank) -> Tensor:
    return of.down.flatten(1).abs().argmax(1, keepdim=True)


def test_a_large_loha_goes_by_the_dense_update(tmp_path: Path) -> None:
    """r² is more than the layer is wide: 289 against 270 × 260."""
    a, b, c, d = drawn(270, 17), drawn(17, 260), drawn(270, 17) + 1, drawn(17, 260) + 1
    ends = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    path = written(tmp_path / "a.safetensors", LINEAR, ends)
    with pytest.raises(UnsupportedLoraError, match="would need rank 260"):
        read(path)
    dense = (a.double() @ b.double()) * (c.double() @ d.double())
    lora = read(path, svd_rank=4)
    spectrum = torch.linalg.svdvals(dense)
    lost = float(spectrum[4:].norm() / spectrum.norm())
    assert lora.conversions[0].error == pytest.approx(lost, rel=1e-4)
    away = layer(lora, LINEAR).delta(torch.float64) - dense
    assert float(away.norm() / dense.norm()) == pytest.approx(lost, rel=1e-4)


def test_a_small_file_does_not_swell(tmp_path: Path) -> None:
    """Two layers of 105 MB each from 440 kB; one alone may be."""
    ends = {
        "lokr_w1": torch.ones(2048, 1), "lokr_w2_a": torch.ones(64, 200),
        "lokr_w2_b": torch.ones(200, 200),
    }  # fmt: skip
    block = "mid_block_attentions_0_transformer_blocks_0_attn1"
    modules = (f"{block}_to_q", f"{block}_to_k")
    path = tables.save(
        tmp_path / "a.safetensors",
        {f"lora_unet_{m}.{end}": tensor for m in modules for end, tensor in ends.items()},
    )
    with pytest.raises(UnsupportedLoraError, match="would need rank 200, and all of them 200 MB"):
        read(path)
    assert [one.rank for one in read(path, svd_rank=1).conversions] == [1, 1]


def test_nothing_at_all_is_no_error(tmp_path: Path) -> None:
    """An untrained file: every kind starts from an update of zeros."""
    for tensors in (
        {"diff": torch.zeros(6, 5)},
        {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.zeros(4, 5)},
    ):
        lora = read(written(tmp_path / "a.safetensors", LINEAR, tensors), svd_rank=2)
        assert not layer(lora, LINEAR).delta().any()
        assert lora.conversions[0].error == 0


def test_plain_layers_stay_as_they_are_and_the_dtype_is_the_files(tmp_path: Path) -> None:
    module, tensors, _ = loha(LINEAR, (OUT, IN))
    half = {end: tensor.half() for end, tensor in tensors.items()}
    mark = named(BLOCK.replace("attn1.to_q", "attn2.to_k"), {
        "lora_down.weight": drawn(8, 768).half(), "lora_up.weight": drawn(8, 8).half(),
    })  # fmt: skip
    lora = read(tables.save(tmp_path / "a.safetensors", mark | named(module, half)), svd_rank=1)
    plain = layer(lora, BLOCK.replace("attn1.to_q", "attn2.to_k"))
    assert (plain.rank, plain.down.dtype) == (8, torch.float16)
    assert plain.down.equal(next(iter(mark.values())))
    assert layer(lora, LINEAR).down.dtype is torch.float32
    assert lora.dtypes == {torch.float16}


def test_exact_products_of_half_precision_are_not_rounded(tmp_path: Path) -> None:
    module, tensors, _ = loha(LINEAR, (OUT, IN))
    half = {end: tensor.half() for end, tensor in tensors.items()}
    found = layer(read(written(tmp_path / "a.safetensors", module, half)), module)
    a, b, c, d = (half[f"hada_w{i}_{j}"].double() for i in "12" for j in "ab")
    up = torch.einsum("or,os->ors", a, c).flatten(1)
    assert found.up.double().equal(up)
    assert found.down.double().equal(torch.einsum("ri,si->rsi", b, d).flatten(0, 1))


def test_a_fused_layer_is_split(tmp_path: Path) -> None:
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    ends = {"lokr_w1": drawn(6, 2), "lokr_w2_a": drawn(4, 2), "lokr_w2_b": drawn(2, 4)}
    path = tmp_path / "a.safetensors"
    lora = read(tables.save(path, {f"{stem}.{end}": t for end, t in ends.items()}))
    w1, a, b = (t.double() for t in ends.values())
    dense = torch.einsum("ac,bd->abcd", w1, a @ b).reshape(24, 8)
    names = [LayerName("transformer", f"transformer_blocks.0.attn.to_{x}") for x in "qkv"]
    for name, rows in zip(names, dense.split(8), strict=True):
        torch.testing.assert_close(
            lora.layers[name].delta(torch.float64), rows, rtol=1e-5, atol=1e-5
        )
    (done,) = lora.conversions
    assert done.layers == tuple(names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hada_w2_b": None}, ["hada_w1_a", "lack the other factors", "LoHa needs"]),
        ({"hada_t1": drawn(2, 2, 3, 3)}, ["hada_t1", "lack the other factors"]),
        ({"hada_w1_b": drawn(3, 10)}, ["hada_w1_b [3, 10]", "hada_w1_a [12, 2]", "taken for LoHa"]),
        ({"hada_w2_a": drawn(11, 2)}, ["[11, 2]", "contradict"]),
        ({"hada_w1_a": drawn(12, 2, 1)}, ["[12, 2, 1]", "contradict"]),
        ({"hada_w1_a": drawn(12)}, ["[12]", "contradict"]),
        ({"hada_w1_a": drawn(12, 0), "hada_w1_b": drawn(0, 10)}, ["[12, 0]", "contradict"]),
        ({"lokr_w1": drawn(2, 2)}, ["lokr_w1", "hada_w1_a", "several kinds"]),
        ({"lora_up.weight": drawn(12, 2)}, ["several kinds", "lora_up"]),
        ({"alpha": torch.tensor(0.0)}, ["above 0", "alpha"]),
        ({"alpha": drawn(2)}, ["alpha must be one number", "[2]"]),
        ({"hada_w1_a": torch.full((12, 2), 1e30), "hada_w2_a": torch.full((12, 2), 1e30)},
         ["float32 cannot hold"]),
    ],
)  # fmt: skip
def test_what_contradicts_itself(
    change: dict[str, Tensor | None], words: list[str], tmp_path: Path
) -> None:
    module, tensors, _ = loha(LINEAR, (OUT, IN))
    changed = {end: t for end, t in {**tensors, **change}.items() if t is not None}
    path = written(tmp_path / "a.safetensors", module, changed)
    with pytest.raises(LoraFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in words), message
    if words[0] not in ("above 0", "alpha must be one number", "float32 cannot hold"):
        assert "kohya with diffusers block names" in message


@pytest.mark.parametrize(
    "tensors",
    [
        {"lokr_w1": drawn(3, 2), "lokr_w2_a": drawn(4, 2), "lokr_w2_b": drawn(3, 5)},
        {"lokr_w1": drawn(3), "lokr_w2": drawn(4, 5)},
        {"lokr_w1": drawn(3, 2), "lokr_w2": drawn(4, 5, 3)},
        {"lokr_w1_a": drawn(3, 1), "lokr_w1_b": drawn(1, 2), "lokr_w2_a": drawn(4, 2),
         "lokr_w2_b": drawn(2, 5)},
        {"lokr_w1": drawn(3, 2), "lokr_w2_a": drawn(2, 4), "lokr_w2_b": drawn(2, 5),
         "lokr_t2": drawn(2, 3, 3, 3)},
        {"lora_down.weight": drawn(2, 5), "lora_up.weight": drawn(6, 2),
         "lora_mid.weight": drawn(2, 2)},
        {"lora_down.weight": drawn(2, 5, 3, 3), "lora_up.weight": drawn(6, 2, 1, 1),
         "lora_mid.weight": drawn(2, 2, 3, 3)},
        {"diff": drawn(2, 3, 4)},
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(tensors: Tensors, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", LINEAR, tensors)
    for svd_rank in (None, 2):
        with pytest.raises(LoraFileError, match="shapes contradict each other"):
            read(path, svd_rank=svd_rank)


def test_a_kernel_that_does_not_fit(tmp_path: Path) -> None:
    module, tensors, _ = loha(CONV, (OUT, IN))
    path = written(tmp_path / "a.safetensors", module, tensors)
    with pytest.raises(LoraFileError, match="10 inputs for it, which is no multiple of 9"):
        read(path)


def test_few_bytes_cannot_ask_for_much(tmp_path: Path) -> None:
    wide = {"lokr_w1": drawn(512, 1), "lokr_w2_a": drawn(512, 1), "lokr_w2_b": drawn(1, 4)}
    path = written(tmp_path / "a.safetensors", LINEAR, wide)
    with pytest.raises(LoraFileError, match="262144 × 4 weights, which no model has"):
        read(path)
    heavy = {"lokr_w1": drawn(256, 256), "lokr_w2": drawn(512, 512)}
    path = written(tmp_path / "b.safetensors", LINEAR, heavy)
    with pytest.raises(UnsupportedLoraError, match="too large"):
        read(path, svd_rank=1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"lora_unet_nothing.lokr_w1": drawn(2, 2), "lora_unet_nothing.lokr_w2": drawn(2, 2)},
         "have no place .*lora_unet_nothing.lokr_w1"),
        ({"lora_unet_mid_block_nothing.lokr_w1": drawn(2, 2),
          "lora_unet_mid_block_nothing.lokr_w2": drawn(2, 2)}, "unet.mid_block.nothing"),
        ({key(CONV, "lora_down.weight"): drawn(1, 2), key(CONV, "lora_up.weight"): drawn(2, 1),
          key(CONV, "alpha"): torch.tensor(0.0)}, "alpha must be a finite number above 0"),
    ],
)  # fmt: skip
def test_nothing_is_converted_of_a_damaged_file(
    broken: Tensors, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converting takes many times the file's memory."""
    monkeypatch.setattr(torch, "kron", None)
    whole = named(BLOCK, {"lokr_w1": drawn(2, 2), "lokr_w2": drawn(3, 3)})
    with pytest.raises(LoraFileError, match=message):
        read(tables.save(tmp_path / "a.safetensors", whole | broken))
    with pytest.raises(TypeError):
        read(tables.save(tmp_path / "b.safetensors", whole))


@pytest.mark.parametrize("name", ["Tucker", "LoHa", "LoHa Tucker", "LoKr product, product"])
def test_products_out_of_range(name: str, tmp_path: Path) -> None:
    module, tensors, _ = CASES[name]()
    large = {end: t * 1e30 if t.ndim else t for end, t in tensors.items()}
    path = written(tmp_path / "a.safetensors", module, large)
    for svd_rank in (None, 1):
        with pytest.raises(LoraFileError, match="products that float32 cannot hold"):
            read(path, svd_rank=svd_rank)


@pytest.mark.parametrize("rank", [0, -1, 8193, 2.0, True])
def test_ranks_out_of_range(rank: int, tmp_path: Path) -> None:
    module, tensors, _ = tucker()
    path = written(tmp_path / "a.safetensors", module, tensors)
    with pytest.raises(RecipeError, match="svd_rank: must be a whole number from 1 to 8192"):
        read(path, svd_rank=rank)
