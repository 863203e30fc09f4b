"""Against dense ΔW and the samples themselves, all in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold
from torch.utils._python_dispatch import TorchDispatchMode

from lorabake.lora.types import LowRank
from lorabake.training import leastsquares, quadratic
from lorabake.training.quadratic import Quadratic

Coefficients = tuple[Tensor, Tensor]
LAMBDAS = (0.0, 0.005, 0.01, 0.02, 0.04)


def solve(
    content: LowRank, style: LowRank, sigma_c: Tensor, sigma_s: Tensor,
    *, lambda_: float, ridge: float = 1e-3,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    layer = Quadratic.of(content, style, sigma_c, sigma_s)
    return leastsquares.solve(layer, lambda_=lambda_, ridge=ridge)


def residual(
    content: LowRank, style: LowRank, sigma_c: Tensor, sigma_s: Tensor, m_c: Tensor, m_s: Tensor
) -> float:
    return leastsquares.residual(Quadratic.of(content, style, sigma_c, sigma_s), m_c, m_s)


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moments(x: Tensor) -> Tensor:
    """E[x xᵀ] of samples `[n, in]`."""
    return x.mT @ x / len(x)


def samples(width: int, seed: int, count: int = 200) -> Tensor:
    """Correlated, with a mean and columns of different size."""
    mixed = draw(count, width, seed=seed) @ draw(width, width, seed=seed + 1)
    sizes = torch.logspace(-1, 1, width, dtype=torch.float64)
    return (mixed + draw(width, seed=seed + 2)) * sizes


@dataclass(frozen=True)
class Case:
    """One layer, and what it gets under either prompt."""

    content: LowRank
    style: LowRank
    x_c: Tensor
    x_s: Tensor

    def solve(self, lambda_: float = 0.0, ridge: float = 0.0) -> Coefficients:
        found = solve(*self.given, lambda_=lambda_, ridge=ridge)
        return found[0], found[1]

    @property
    def given(self) -> tuple[LowRank, LowRank, Tensor, Tensor]:
        return self.content, self.style, moments(self.x_c), moments(self.x_s)

    def loss(self, m_c: Tensor, m_s: Tensor) -> Tensor:
        """The data term on the samples, as the issue of the method writes it."""
        W_c, W_s = (
            side.scale * side.up.double() @ side.down.double()
            for side in (self.content, self.style)
        )
        off_c = self.x_c @ (W_c * (m_c - 1) + W_s * m_s).mT
        off_s = self.x_s @ (W_c * m_c + W_s * (m_s - 1)).mT
        return off_c.square().sum(1).mean() + off_s.square().sum(1).mean()


def case(width: int = 10, out: int = 14, ranks: tuple[int, int] = (5, 7), seed: int = 0) -> Case:
    content, style = (
        LowRank(
            draw(rank, width, seed=seed + 10 * side + 1).float(),
            draw(out, rank, seed=seed + 10 * side + 2).float(),
            scale,
        )
        for side, (rank, scale) in enumerate(zip(ranks, (0.5, 2.0), strict=True))
    )
    return Case(content, style, samples(width, seed + 30), samples(width, seed + 40))


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), 0).item()


def gradient(function: Callable[[Tensor, Tensor], Tensor], m: Coefficients) -> Tensor:
    leaves = [part.double().requires_grad_() for part in m]
    return torch.cat(torch.autograd.grad(function(*leaves), leaves))


def test_the_data_term_is_stationary_at_the_solution() -> None:
    it = case()
    m = it.solve()
    assert all(part.dtype == torch.float32 and part.shape == (10,) for part in m)
    start = gradient(it.loss, (torch.ones(10), torch.ones(10)))
    # What is left is the rounding of the coefficients to float32.
    assert gradient(it.loss, m).norm() < 1e-5 * start.norm()


def test_all_terms_together_are_stationary_at_the_solution() -> None:
    """Similarity and ridge with their units, written from the samples."""
    it, lambda_, ridge = case(), 0.05, 0.03
    energies: list[Tensor] = []
    for side in (it.content, it.style):
        columns = (side.scale * side.up.double() @ side.down.double()).square().sum(0)
        energies.append(columns * (it.x_c.square().mean(0) + it.x_s.square().mean(0)))
    tau = torch.cat(energies).mean()
    weight = torch.minimum(tau, (energies[0] * energies[1]).sqrt())

    def objective(m_c: Tensor, m_s: Tensor) -> Tensor:
        held = ridge * tau * ((m_c - 1).square().sum() + (m_s - 1).square().sum())
        return it.loss(m_c, m_s) + lambda_ * (weight * m_c * m_s).sum() + held

    start = gradient(objective, (torch.ones(10), torch.ones(10)))
    assert gradient(objective, it.solve(lambda_, ridge)).norm() < 1e-5 * start.norm()
    assert gradient(it.loss, it.solve(lambda_, ridge)).norm() > 1e-3 * start.norm()


def test_nothing_near_is_better() -> None:
    it = case(seed=100)
    m_c, m_s = (part.double() for part in it.solve())
    best = it.loss(m_c, m_s)
    assert best < 0.5 * it.loss(torch.ones(10), torch.ones(10))
    for seed in range(20):
        for size in (1.0, 0.01):
            away = size * draw(2, 10, seed=seed)
            assert it.loss(m_c + away[0], m_s + away[1]) > best


def test_residual_is_the_data_term_on_the_samples() -> None:
    it = case()
    m_c, m_s = draw(2, 10, seed=5)
    assert residual(*it.given, m_c, m_s) == pytest.approx(it.loss(m_c, m_s).item())
    ones = torch.ones(10)
    assert residual(*it.given, ones, ones) > residual(*it.given, *it.solve())


def test_the_factors_that_a_delta_is_written_in_do_not_matter() -> None:
    """Ranks above the outputs, and a scale inside or outside."""
    it = case(width=4, out=6, ranks=(8, 9))
    delta = it.content.scale * it.content.up.double() @ it.content.down.double()
    basis = torch.linalg.qr(draw(6, 6, seed=9)).Q
    other = Case(LowRank(basis.mT @ delta, basis), it.style, it.x_c, it.x_s)
    torch.testing.assert_close(other.solve(0.01, 1e-3), it.solve(0.01, 1e-3))


def test_equal_inputs_on_both_sides_give_the_plain_average() -> None:
    it = case()
    same = Case(it.content, it.style, it.x_c, it.x_c)
    half = torch.full((10,), 0.5)
    torch.testing.assert_close(same.solve(), (half, half))
    torch.testing.assert_close(same.solve(ridge=1e-8), (half, half), atol=1e-3, rtol=0)


def test_separate_inputs_keep_both() -> None:
    """Columns that one prompt alone uses belong to its LoRA."""
    it = case()
    x_c, x_s = it.x_c.clone(), it.x_s.clone()
    x_c[:, 5:] = 0
    x_s[:, :5] = 0
    apart = Case(it.content, it.style, x_c, x_s)
    m_c, m_s = apart.solve(ridge=1e-9)
    expected = torch.tensor([1.0] * 5 + [0.0] * 5)
    torch.testing.assert_close((m_c, m_s), (expected, 1 - expected), atol=1e-4, rtol=0)


def test_lambda_lowers_the_overlap() -> None:
    it = case(seed=200)
    overlaps = [(m_c * m_s).mean().item() for m_c, m_s in (it.solve(x, 0.02) for x in LAMBDAS)]
    assert overlaps == sorted(overlaps, reverse=True)
    assert overlaps[0] - overlaps[-1] > 0.01


def test_a_lambda_that_is_too_large_is_the_largest_allowed() -> None:
    """The allowed one found by eigenvalues; twice of it is convex, and of the next power is not."""
    it, ridge = case(seed=300), 0.01
    H = hessian(it)
    tau = H.diagonal().mean()
    energies = H.diagonal().view(2, -1)
    weight = torch.minimum(tau, energies.prod(0).sqrt())
    similarity = torch.zeros_like(H)
    similarity[:10, 10:] = similarity[10:, :10] = weight.diag() / 2

    def least(lambda_: float) -> float:
        eye = ridge * tau * torch.eye(20, dtype=torch.float64)
        return torch.linalg.eigvalsh(H + eye + 2 * lambda_ * similarity)[0].item()

    powers = [2.0**-k for k in range(12)]
    allowed = next(x for x in powers if least(x) > 0)
    assert 0.01 <= allowed < 1
    for wanted in (1.5 * allowed, 3.0, 1e6):
        torch.testing.assert_close(it.solve(wanted, ridge), it.solve(allowed, ridge))
    assert not torch.equal(it.solve(allowed, ridge)[0], it.solve(allowed / 2, ridge)[0])


def hessian(it: Case) -> Tensor:
    """Half of the data term's, by autograd."""

    def loss(m: Tensor) -> Tensor:
        return it.loss(m[:10], m[10:])

    found = torch.autograd.functional.hessian(loss, torch.zeros(20, dtype=torch.float64))
    assert isinstance(found, Tensor)
    return found / 2


@pytest.mark.parametrize("limit", [6000, 0], ids=["cholesky", "gradients"])
@pytest.mark.parametrize("lambda_", [0.0, 0.01, 5.0])
def test_columns_without_data_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, limit: int, lambda_: float
) -> None:
    monkeypatch.setattr(leastsquares, "DIRECT_LIMIT", limit)
    it = case()
    x_c, x_s = it.x_c.clone(), it.x_s.clone()
    x_c[:, [2, 7]] = x_s[:, [2, 7]] = 0
    m_c, m_s = Case(it.content, it.style, x_c, x_s).solve(lambda_, 1e-3)
    expected = torch.ones(2)
    torch.testing.assert_close((m_c[[2, 7]], m_s[[2, 7]]), (expected, expected))
    assert (m_c - 1).abs().max() > 0.1


def test_no_data_at_all_changes_nothing() -> None:
    it = case()
    nothing = torch.zeros(10, 10)
    found = solve(it.content, it.style, nothing, nothing, lambda_=0.1, ridge=1e-3)
    assert all(torch.equal(part, torch.ones(10)) for part in found)


@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e5])
def test_units_do_not_matter(factor: float) -> None:
    """Of both updates, and of the inputs."""
    it = case()
    before = it.solve(0.01, 1e-3)
    scaled = Case(it.content.scaled(factor), it.style.scaled(factor), it.x_c, it.x_s)
    torch.testing.assert_close(scaled.solve(0.01, 1e-3), before)
    louder = Case(it.content, it.style, it.x_c * factor, it.x_s * factor)
    torch.testing.assert_close(louder.solve(0.01, 1e-3), before)


def convolution(kernel: int) -> tuple[LowRank, LowRank, Tensor, Tensor]:
    """Factors for 4 channels, and images under either prompt."""
    content, style = (
        LowRank(draw(rank, 4, kernel, kernel, seed=rank), draw(6, rank, 1, 1, seed=rank + 50), 1.5)
        for rank in (3, 5)
    )
    return content, style, draw(5, 4, 8, 8, seed=1), draw(5, 4, 8, 8, seed=2).cumsum(1)


def patches(x: Tensor, kernel: int) -> Tensor:
    """`[n, in · kernel²]`, every place a sample."""
    return unfold(x, kernel, padding=kernel // 2).movedim(1, 2).flatten(0, 1)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("chunk", [1 << 23, 60], ids=["whole", "slices"])
def test_convolutions_against_the_convolution_itself(
    monkeypatch: pytest.MonkeyPatch, kernel: int, chunk: int
) -> None:
    monkeypatch.setattr(quadratic, "_CHUNK", chunk)
    content, style, x_c, x_s = convolution(kernel)
    W_c, W_s = (
        (1.5 * side.up.flatten(1) @ side.down.flatten(1)).view(6, 4, kernel, kernel)
        for side in (content, style)
    )

    def loss(m_c: Tensor, m_s: Tensor) -> Tensor:
        m_c, m_s = m_c.view(1, 4, 1, 1), m_s.view(1, 4, 1, 1)
        off_c = conv2d(x_c, W_c * (m_c - 1) + W_s * m_s, padding=kernel // 2)
        off_s = conv2d(x_s, W_c * m_c + W_s * (m_s - 1), padding=kernel // 2)
        return (off_c.square() + off_s.square()).sum(1).mean()

    sigmas = moments(patches(x_c, kernel)), moments(patches(x_s, kernel))
    m = solve(content, style, *sigmas, lambda_=0.0, ridge=0.0)
    ones = torch.ones(4)
    start = gradient(loss, (ones, ones))
    assert gradient(loss, m).norm() < 1e-5 * start.norm()
    for some in (m, (ones, ones)):
        expected = loss(some[0].double(), some[1].double()).item()
        assert residual(content, style, *sigmas, *some) == pytest.approx(expected)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("lambda_", "ridge"), [(0.0, 0.0), (0.0, 1e-3), (0.004, 1e-3)])
def test_conjugate_gradients_find_what_cholesky_finds(
    monkeypatch: pytest.MonkeyPatch, kernel: int, lambda_: float, ridge: float
) -> None:
    content, style, x_c, x_s = convolution(kernel)
    sigmas = moments(patches(x_c, kernel)).float(), moments(patches(x_s, kernel)).float()
    direct = solve(content, style, *sigmas, lambda_=lambda_, ridge=ridge)
    monkeypatch.setattr(leastsquares, "DIRECT_LIMIT", 7)
    monkeypatch.setattr(quadratic, "_CHUNK", 60)
    iterated = solve(content, style, *sigmas, lambda_=lambda_, ridge=ridge)
    torch.testing.assert_close(iterated, direct)


def test_conjugate_gradients_notice_a_lambda_that_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = case(seed=300)
    direct = it.solve(50.0, 0.01)
    monkeypatch.setattr(leastsquares, "DIRECT_LIMIT", 0)
    torch.testing.assert_close(it.solve(50.0, 0.01), direct, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_solved_is_said() -> None:
    it = case()
    content, style, sigma_c, sigma_s = it.given
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve(content, style, sigma_c * torch.nan, sigma_s, lambda_=0.0, ridge=1e-3)
    few = moments(it.x_c[:1])
    flat = LowRank(content.down[:1], content.up[:, :1])
    with pytest.raises(ValueError, match="larger ridge"):
        solve(flat, flat, few, few, lambda_=0.01, ridge=0.0)


@pytest.mark.parametrize(("limit", "most"), [(6000, 80 * 80), (0, 400 * 7)])
def test_the_deltas_are_never_formed(
    monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr(leastsquares, "DIRECT_LIMIT", limit)
    it = case(width=40, out=400, ranks=(3, 4))
    given = it.given
    with Largest() as largest:
        m = solve(*given, lambda_=0.01, ridge=1e-3)
        residual(*given, *m)
    assert largest.numbers == most


class Largest(TorchDispatchMode):
    """Remembers the size of the largest result of any operation inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return found
