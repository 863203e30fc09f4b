"""The criteria against torch's own divergences in float64, for faint and for huge updates."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lorabake.runtime.divergence import differences
from lorabake.runtime.selection import Criterion


def naive(moved: Tensor, base: Tensor, criterion: str) -> Tensor:
    """Of every token: `[tokens, channels]` in float64."""
    if criterion == "cosine":
        return 1 - functional.cosine_similarity(moved, base, 1)
    if criterion == "dot":
        return -(moved * base).sum(1)
    p, q = moved.log_softmax(1), base.log_softmax(1)
    if criterion == "kl":
        return functional.kl_div(q, p, reduction="none", log_target=True).sum(1)
    m = torch.logaddexp(p, q) - torch.tensor(2.0).log()
    both = [functional.kl_div(m, x, reduction="none", log_target=True).sum(1) for x in (p, q)]
    return (both[0] + both[1]) / 2


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("criterion", ["kl", "js", "cosine", "dot"])
def test_differences_keep_their_last_digits(criterion: str, size: float) -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(64, 48, generator=g, dtype=torch.float64) for _ in range(3))
    F, content, style = (x.float() for x in (30 + 3 * a, size * b, 0.7 * size * c))
    base = F.double()
    wanted = naive(base + content, base, criterion) - naive(base + style, base, criterion)
    found = differences(F, content, style, cast("Criterion", criterion), 1.0, 1)
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 5e-3 * wanted.abs().mean()
    across = differences(F.t(), content.t(), style.t(), cast("Criterion", criterion), 1.0, 0)
    torch.testing.assert_close(across, found, rtol=0, atol=float(5e-3 * wanted.abs().mean()))


def test_a_faint_token_is_measured_alike_beside_an_overwhelming_one() -> None:
    F, content, style = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(1))
    faint = differences(F[:1], 1e-3 * content[:1], 1e-3 * style[:1], "kl", 1.0, 1)
    sizes = torch.tensor([[1e-3], [100.0]])
    assert differences(F, sizes * content, sizes * style, "kl", 1.0, 1)[0] == faint


def test_short_types_are_measured_in_float32_and_the_temperature_divides_logits() -> None:
    F, content, style = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))
    short = [x.bfloat16() for x in (F, content, style)]
    wide = differences(*(x.float() / 2 for x in short), "kl", 1.0, 1)  # type: ignore[call-arg] - three tensors
    assert torch.equal(differences(*short, "kl", 2.0, 1), wide)  # type: ignore[call-arg] - three tensors
