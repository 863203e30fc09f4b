"""The objective of ZipLoRA (arXiv 2311.13600, eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Similarity = Literal["paper", "cosine", "mean"]
Norm = Literal["paper", "mse"]


class Loss(NamedTuple):
    """The parts of a loss: content + style + lambda · similarity is what is minimised.

    Attributes:
        content: ‖D_m(x_c, p_c) − D_c(x_c, p_c)‖, or what else is the norm.
        style: ‖D_m(x_s, p_s) − D_s(x_s, p_s)‖, likewise.
        similarity: The similarity term, without lambda.
    """

    content: float
    style: float
    similarity: float


def distance(student: Tensor, teacher: Tensor, norm: Norm) -> Tensor:
    """How far predictions `[rows, …]` are apart, per sample, mean over the rows.

    Args:
        student: Of the merged model.
        teacher: Of the base model with one LoRA.
        norm: `paper`: Euclidean norm over all entries of a sample (eq. 3); `mse`: mean of squares.

    Returns:
        A scalar, in float32 or wider.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    difference = (student.to(wide) - teacher.to(wide)).flatten(1)
    if norm == "mse":
        return difference.square().mean()
    return torch.linalg.vector_norm(difference, dim=1).mean()


def paper(m: Tensor, layer: Tensor) -> Tensor:
    """Σ_l |m_c^l · m_s^l|: dot products per layer, the third term of eq. 3.

    It grows with the number of columns: lambda is a price per column, compared with the norms of
    whole predictions.
    """
    return _per_layer(m[0] * m[1], layer).abs().sum()


def mean(m: Tensor, layer: Tensor) -> Tensor:
    """Σ_l mean_j |m_c,j·m_s,j|, as public re-implementations have it.

    It grows with the number of layers: lambda is a price per layer. Magnitudes are taken per
    column, so columns of opposite sign do not cancel.
    """
    return (_per_layer((m[0] * m[1]).abs(), layer) / _per_layer(torch.ones_like(m[0]), layer)).sum()


def cosine(m: Tensor, layer: Tensor) -> Tensor:
    """Mean over layers of |cos(m_c^l, m_s^l)|, from 0 to 1 whatever the model's size.

    It does not change when all coefficients of a layer shrink alike, so only what tells content
    from style lowers it.
    """
    dot = _per_layer(m[0] * m[1], layer)
    norms = (_per_layer(m[0].square(), layer) * _per_layer(m[1].square(), layer)).sqrt()
    return (dot / norms.clamp_min(1e-12)).abs().mean()


SIMILARITIES: dict[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "paper": paper, "cosine": cosine, "mean": mean,
}  # fmt: skip


def _per_layer(values: Tensor, layer: Tensor) -> Tensor:
    """Sums of `[columns]` by layer, `[layers]`."""
    sums = values.new_zeros(int(layer[-1]) + 1)
    return sums.index_add(0, layer, values)
