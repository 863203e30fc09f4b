"""The sum of the K largest entries is exact, whatever the update looks like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorabake.lora import topk
from lorabake.lora.topk import magnitude
from lorabake.lora.types import LowRank


def oracle(layer: LowRank, k: int) -> tuple[float, float]:
    entries = layer.delta(torch.float64).abs().flatten()
    return float(entries.sort(descending=True).values[:k].sum()), float(entries.sum())


def layer(out: int, width: int, rank: int, seed: int = 0, kind: str = "plain") -> LowRank:
    dice = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=dice), torch.randn(out, rank, generator=dice)
    strong = torch.randn(max(out, width), generator=dice).mul(2).exp()
    match kind:
        case "rows":
            up *= strong[:out, None]
        case "columns":
            down *= strong[:width]
        case "both":
            up *= strong[:out, None]
            down *= strong.flip(0)[:width]
        case "one row":
            up[out // 3] *= 1000
        case "one entry":
            up[out // 3], down[:, width // 3] = 50, 50
        case "signs":  # all entries alike: nothing but ties
            up, down = up.sign(), down.sign()
            down[1:] = 0
        case "steps":  # few different values, many ties at each
            up, down = up.round(), down.round()
        case _:
            pass
    return LowRank(down, up, scale=0.37)


def close(layer: LowRank, k: int) -> None:
    found, (top, total) = magnitude(layer, k), oracle(layer, k)
    assert found.top == pytest.approx(top, rel=1e-7)
    assert found.total == pytest.approx(total, rel=1e-7)


@pytest.mark.parametrize(
    "kind", ["plain", "rows", "columns", "both", "one row", "one entry", "signs", "steps"]
)
@pytest.mark.parametrize(
    ("out", "width", "rank", "k"),
    [
        (640, 640, 16, 256),
        (640, 640, 8, 4),
        (300, 2000, 32, 1024),
        (2000, 300, 4, 1),
        (17, 5, 3, 9),
    ],
)
def test_equals_the_dense_sums(kind: str, out: int, width: int, rank: int, k: int) -> None:
    close(layer(out, width, rank, kind=kind), k)


@pytest.mark.parametrize("k", [1, 2, 4096, 409_599, 409_600, 409_601, 10**12])
def test_from_the_largest_entry_to_all_of_them(k: int) -> None:
    close(layer(640, 640, 8), k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_the_file_s_dtype(dtype: torch.dtype) -> None:
    exact = layer(400, 500, 32)
    close(LowRank(exact.down.to(dtype), exact.up.to(dtype), 0.25), 1024)


def test_a_convolution_is_its_flattened_matrix() -> None:
    flat = layer(200, 90 * 9, 16)
    conv = LowRank(flat.down.reshape(16, 90, 3, 3), flat.up.reshape(200, 16, 1, 1), flat.scale)
    assert magnitude(conv, 300) == magnitude(flat, 300)
    close(conv, 300)


@pytest.mark.parametrize("size", [6, 700])
def test_nothing_sums_to_nothing(size: int) -> None:
    A = torch.randn(4, size)
    assert magnitude(LowRank(A, torch.zeros(size, 4)), 300).top == 0
    sparse = torch.zeros(size, 4)
    sparse[3] = 1  # fewer entries than k
    close(LowRank(A, sparse), 16 * size)


@pytest.mark.parametrize("size", [1e30, 1e-30])
@pytest.mark.parametrize("edge", [4, 700])
def test_products_beyond_float32_are_kept(size: float, edge: int) -> None:
    plain = layer(edge, edge, 32)
    close(LowRank(plain.down * size, plain.up * size), 1024)


def test_float16_at_its_limit() -> None:
    plain = layer(700, 700, 32)
    down, up = (x.clamp(-1, 1).mul(6e4).half() for x in (plain.down, plain.up))
    close(LowRank(down, up), 1024)


def test_a_negative_scale_has_a_magnitude() -> None:
    plain = layer(20, 30, 2)
    negative = LowRank(plain.down, plain.up, -plain.scale)
    assert magnitude(negative, 4) == magnitude(plain, 4)


@pytest.mark.parametrize("guess", [1e-3, 30.0, 1e9])
def test_a_wrong_guess_costs_no_exactness(monkeypatch: pytest.MonkeyPatch, guess: float) -> None:
    def wrong(block: Tensor, share: float) -> float:
        return guess

    monkeypatch.setattr(topk, "_foretell", wrong)
    for kind in ("plain", "both", "signs"):
        close(layer(640, 900, 16, kind=kind), 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [0.5, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("part", ["all", "half the rows", "half the columns", "one strong row"])
def test_terms_that_cancel(part: str, eps: float, dtype: torch.dtype) -> None:
    """Float32 keeps what is left of large terms with few digits."""
    dice = torch.Generator().manual_seed(0)
    A, N = (torch.randn(16, 480, generator=dice) for _ in range(2))
    B, M = (torch.randn(480, 16, generator=dice) for _ in range(2))
    up, down = torch.cat([B, -B], 1), torch.cat([A, A + eps * N])
    match part:
        case "half the rows":
            up[::2, 16:] = M[::2]
        case "half the columns":
            down[16:, ::2] = N[:, ::2]
        case "one strong row":
            up[:, 16:] = 0
            up[7] = torch.cat([B[7], -B[7]]) * 10 / eps
        case _:
            pass
    layer = LowRank(down.to(dtype), up.to(dtype))
    found, (top, total) = magnitude(layer, 256), oracle(layer, 256)
    assert found.top == pytest.approx(top, rel=5e-8)
    assert found.total == pytest.approx(total, rel=5e-8)


@pytest.mark.parametrize("uneven", [0.0, 0.5])
@pytest.mark.parametrize("rank", [1, 4, 16, 64, 128])
def test_ordinary_layers_are_computed_once(
    monkeypatch: pytest.MonkeyPatch, rank: int, uneven: float
) -> None:
    dtypes: list[torch.dtype] = []
    sums = topk._sums  # pyright: ignore[reportPrivateUsage] - watched, not called

    def watched(B: Tensor, A: Tensor, k: int) -> tuple[float, float]:
        dtypes.append(B.dtype)
        return sums(B, A, k)

    monkeypatch.setattr(topk, "_sums", watched)
    plain = layer(640, 1280, rank)
    dice = torch.Generator().manual_seed(1)
    rows, columns = ((uneven * torch.randn(n, generator=dice)).exp() for n in (640, 1280))
    magnitude(LowRank(plain.down * columns, plain.up * rows[:, None]), max(256, rank**2))
    assert dtypes == [torch.float32]


@pytest.mark.parametrize("kind", ["plain", "both", "one row", "signs"])
@pytest.mark.parametrize("likely", [1, 10**9])
def test_a_wrong_forecast_costs_neither_exactness_nor_memory(
    monkeypatch: pytest.MonkeyPatch, kind: str, likely: int
) -> None:
    sizes: list[int] = []
    largest = topk._largest  # pyright: ignore[reportPrivateUsage] - watched, not called

    def watched(values: Tensor, k: int) -> Tensor:
        sizes.append(len(values))
        return largest(values, k)

    def wrong(expected: float) -> int:
        return likely

    monkeypatch.setattr(topk, "_likely", wrong)
    monkeypatch.setattr(topk, "_largest", watched)
    close(layer(2000, 640, 16, kind=kind), 300)
    block = topk._CACHED // 4  # pyright: ignore[reportPrivateUsage]
    assert max(sizes) <= 2 * 300 + 256 + block


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["plain", "both", "signs"])
def test_a_gpu_finds_the_same(kind: str) -> None:
    big = layer(3000, 7000, 16, kind=kind)
    found, (top, total) = magnitude(big, 256, torch.device("cuda")), oracle(big, 256)
    assert found.top == pytest.approx(top, rel=1e-9)
    assert found.total == pytest.approx(total, rel=1e-9)
