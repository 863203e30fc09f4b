"""Whose rows are whose: layers of odd shapes, padding, parts, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from lorabake.runtime import Bundle, read

from .naive_bundle import LIVE, Spec, write
from .pipes import draw

Way = Callable[[nn.Module, Tensor], Tensor]


class Denoiser(nn.Module):
    """One linear layer, called in some way."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self._way = nn.Linear(6, 8), way

    def forward(self, sample: Tensor, timestep: Any, text_mask: Tensor | None = None) -> Tensor:
        return self._way(self.layer, sample)


class Pipe:
    """As much of a pipeline as replay asks for."""

    def __init__(self, way: Way) -> None:
        self.transformer, self.scheduler = Denoiser(way), DDIMScheduler()
        self.scheduler.set_timesteps(2)

    @torch.no_grad()
    def __call__(self, sample: Tensor, **more: Any) -> Tensor:
        return self.transformer(sample, self.scheduler.timesteps[0], **more)


def baked(pipe: Pipe, folder: Path) -> tuple[Bundle, Spec]:
    spec = Spec("transformer", "layer", (2, 2), {"live": True})
    roots: dict[str, nn.Module] = {"transformer": pipe.transformer}
    return read(write(folder / "b", [spec], roots, size=0.3, **LIVE)), spec


def run(bundle: Bundle, pipe: Pipe, x: Tensor, **more: Any) -> tuple[Tensor, list[int] | None]:
    """What comes out, and what was chosen."""
    tokens = more.pop("tokens", 0)
    with bundle.attach(pipe, tokens=tokens) as replay:
        out = pipe(x, **more)
    return out, replay.report()["layers"][0]["decisions"][0][0]


def chosen(pipe: Pipe, spec: Spec, x: Tensor) -> int:
    """By dense weights: content 0 or style 1, of these tokens `[tokens, 6]` together."""
    base = pipe.transformer.layer(x).detach()
    q = base.double().log_softmax(1)
    p = [(base + x @ delta.T).double().log_softmax(1) for delta in spec.deltas]
    kl = [float((one.exp() * (one - q)).sum(1).mean()) for one in p]
    return 0 if kl[0] >= kl[1] else 1


def dense(pipe: Pipe, spec: Spec, x: Tensor, choice: int) -> Tensor:
    return (pipe.transformer.layer(x) + x @ spec.deltas[choice].T).detach()


def flat(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_frames_belong_to_their_sample(tmp_path: Path) -> None:
    pipe = Pipe(flat)
    bundle, spec = baked(pipe, tmp_path)
    x = 2 * draw(8, 4, 5, 6, seed=1)  # samples, frames, tokens
    out, found = run(bundle, pipe, x)
    assert found
    assert found == [chosen(pipe, spec, one.flatten(0, 1)) for one in x]
    assert len({*found}) == 2
    for one, part, choice in zip(x, out, found, strict=True):
        torch.testing.assert_close(part, dense(pipe, spec, one, choice))
    _, found = run(bundle, pipe, x, tokens=7)
    spread = [20 * k // 7 for k in range(7)]
    assert found == [chosen(pipe, spec, one.flatten(0, 1)[spread]) for one in x]


def test_rows_that_nobody_can_tell_apart_choose_for_themselves(tmp_path: Path) -> None:
    """As mixtures of experts have them, and captions put behind one another."""
    pipe = Pipe(flat)
    bundle, spec = baked(pipe, tmp_path)
    x = draw(2, 6, 6, seed=2)
    out, found = run(bundle, pipe, x)
    assert found is None
    alone = [chosen(pipe, spec, token[None]) for token in x.flatten(0, 1)]
    assert len({*alone}) == 2
    for token, part, choice in zip(x.flatten(0, 1), out.flatten(0, 1), alone, strict=True):
        torch.testing.assert_close(part, dense(pipe, spec, token, choice))
    torch.testing.assert_close(run(bundle, pipe, x[:1])[0], out[:1])


@pytest.mark.parametrize("dim", [0, 1])
def test_a_layer_computed_in_parts_has_no_choice_of_its_own(dim: int, tmp_path: Path) -> None:
    pipe = Pipe(lambda layer, x: torch.cat([layer(part) for part in x.split(1, dim)], dim))
    bundle, spec = baked(pipe, tmp_path)
    x = draw(3, 4, 6, seed=3)
    out, found = run(bundle, pipe, x)
    assert found is None
    for i in range(3):
        parts = [x[i]] if dim == 0 else x[i].split(1)
        wanted = [dense(pipe, spec, part, chosen(pipe, spec, part)) for part in parts]
        torch.testing.assert_close(out[i], torch.cat(wanted))


def test_padding_that_the_denoiser_is_told_of_does_not_choose(tmp_path: Path) -> None:
    pipe = Pipe(lambda layer, x: layer(x))
    bundle, spec = baked(pipe, tmp_path)
    x, lengths = draw(6, 9, 6, seed=4), [2, 9, 5, 3, 1, 4]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    _, found = run(bundle, pipe, x, text_mask=mask)
    assert found == [chosen(pipe, spec, one[:n]) for one, n in zip(x, lengths, strict=True)]
    _, whole = run(bundle, pipe, x)
    assert whole == [chosen(pipe, spec, one) for one in x]
    assert whole != found


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_infinity_in_what_is_not_chosen_stays_there(
    strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(lambda layer, x: layer(x))
    bundle, _ = baked(pipe, tmp_path)
    pipe.transformer.half()
    factors = Bundle.factors

    def huge(self: Bundle, layer: Any, source: int, *where: Any) -> tuple[Tensor, Tensor]:
        """Style's A·x overflows, and its B leaves nothing of it."""
        A, B = factors(self, layer, source, *where)
        return (torch.full_like(A, 6e4), B * 1e-9) if source == 1 else (A, B)

    monkeypatch.setattr(Bundle, "factors", huge)
    x = 9 * draw(1, 2, 6, seed=6).half().abs()
    assert (x.float() @ torch.full((6, 1), 6e4)).min() > 65504
    with bundle.attach(pipe, style_strength=strength) as replay:
        out = pipe(x)
    assert replay.report()["layers"][0]["mode"] == "live"
    assert out.isfinite().all()


def test_features_that_are_no_numbers_have_no_choice(tmp_path: Path) -> None:
    pipe = Pipe(lambda layer, x: layer(x))
    bundle, _ = baked(pipe, tmp_path)
    x = draw(2, 3, 6, seed=5)
    x[1, 0, 0] = torch.nan
    assert run(bundle, pipe, x)[1] is None


def test_no_rows_at_all_leave_the_others_alone(tmp_path: Path) -> None:
    """As an expert that no token came to."""
    pipe = Pipe(lambda layer, x: (layer(x[0, :0]), layer(x))[1])
    bundle, spec = baked(pipe, tmp_path)
    x = draw(2, 3, 6, seed=6)
    assert run(bundle, pipe, x)[1] == [chosen(pipe, spec, one) for one in x]
