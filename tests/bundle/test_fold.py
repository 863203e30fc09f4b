from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorabake.bundle.deviation import deviation
from lorabake.bundle.fold import fold, widest
from lorabake.bundle.stack import stack
from lorabake.errors import OutputError
from lorabake.lora import LowRank

f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = [f16, bf16, f32]


def factors(
    scale: float,
    dtype: torch.dtype,
    a: float = 0.02,
    b: float = 0.002,
    kernel: tuple[int, ...] = (),
) -> LowRank:
    g = torch.Generator().manual_seed(0)
    down = torch.randn(8, 96, *kernel, generator=g) * a
    up = torch.randn(64, 8, *(1 for _ in kernel), generator=g) * b
    return LowRank(down.to(dtype), up.to(dtype), scale)


def product(stored: tuple[Tensor, Tensor]) -> Tensor:
    down, up = (t.double().flatten(1) for t in stored)
    return up @ down


def relative(stored: tuple[Tensor, Tensor], source: LowRank) -> float:
    wanted = source.delta(f64).flatten(1)
    return float((product(stored) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        ([f16], f16),
        ([bf16], bf16),
        ([f16, bf16], f32),
        ([f16, f32], f32),
        ([f64, f16], f32),
        ([torch.float8_e4m3fn], f16),
        ([torch.float8_e4m3fn, bf16], bf16),
    ],
)
def test_the_wider_dtype(dtypes: list[torch.dtype], result: torch.dtype) -> None:
    assert widest(dtypes) == result


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_without_scale_stay_as_they_are(dtype: torch.dtype) -> None:
    source = factors(1.0, dtype)
    assert fold(source, dtype) == (source.down, source.up)


@pytest.mark.parametrize("dtype", [bf16, f32])
@pytest.mark.parametrize("scale", [2.0**-6, 0.5, 8.0])
def test_a_power_of_two_costs_nothing(dtype: torch.dtype, scale: float) -> None:
    source = factors(scale, dtype)
    assert relative(fold(source, dtype), source) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0**-6, 0.3, 1 / 3, 24.0])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 100.0])
def test_one_rounding_at_most(dtype: torch.dtype, scale: float, size: float) -> None:
    source = factors(scale, dtype, b=size)
    # One rounding is half a unit in the last place, in B alone.
    assert relative(fold(source, dtype), source) <= torch.finfo(dtype).eps / 2


def test_float16_neither_underflows_nor_overflows() -> None:
    tiny, huge = factors(1.0, f32, a=1.0, b=1e-9), factors(64.0, f16, a=1e-4, b=2e4)
    for source in (tiny, huge):
        assert relative(fold(source, f16), source) < 1e-3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OutputError, match=r"too large for float16.*float32"):
        fold(factors(1e12, f16, a=100, b=100), f16)
    with pytest.raises(OutputError, match=r"too small for float16.*float32"):
        fold(factors(1.0, f32, a=1e-6, b=1e-7), f16)
    with pytest.raises(OutputError, match=r"too small for float32.*sensible"):
        fold(factors(1e-320, f32), f32)
    with pytest.raises(OutputError, match=r"too large for float32.*sensible"):
        fold(factors(1e300, f32, a=1e30), f32)


def test_nothing_is_never_too_small() -> None:
    assert not product(fold(factors(1.0, f32, a=1e-6, b=0.0), f16)).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_deviation_is_the_dense_error(
    dtype: torch.dtype, scale: float, kernel: tuple[int, ...]
) -> None:
    source = factors(scale, f32, kernel=kernel)
    stored = fold(source, dtype)
    found = deviation(stored, source)
    true = relative(stored, source)
    # It is an upper bound: two errors are added that mostly do not point the same way.
    assert true * 0.999 <= found.relative + 1e-12 <= true * 1.6 + 1e-11
    assert found.error <= found.allowed


@pytest.mark.parametrize("which", [0, 1])
def test_deviation_sees_one_changed_entry(which: int) -> None:
    source = factors(0.3, f16)
    stored = tuple(t.clone() for t in fold(source, f16))
    stored[which][3, 5] *= 1.25
    found = deviation((stored[0], stored[1]), source)
    assert found.error > found.allowed


def test_deviation_of_nothing() -> None:
    source = LowRank(torch.zeros(2, 4), torch.zeros(3, 2), 0.5)
    assert deviation(fold(source, f32), source).relative == 0
    wrong = deviation((torch.ones(2, 4), torch.ones(3, 2)), source)
    assert wrong.relative == 1
    assert wrong.error > wrong.allowed


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_stack_is_the_sum(kernel: tuple[int, ...]) -> None:
    one, two = factors(0.5, f32, kernel=kernel), factors(3.0, f32, b=1.0, kernel=kernel)
    down, up = stack((one, two), 20, f32)
    assert down.shape == (20, 96, *kernel)
    assert up.shape == (64, 20, *(1 for _ in kernel))
    assert not down[16:].any()
    assert not up[:, 16:].any()
    wanted = one.delta(f64) + two.delta(f64)
    torch.testing.assert_close(
        product((down, up)).reshape(wanted.shape), wanted, rtol=1e-6, atol=1e-7
    )
    alone = stack((None, two), 20, f32)
    assert torch.equal(product(alone), product(fold(two, f32)))
